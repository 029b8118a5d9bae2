//! The plot of a benchmark: CPU per frame beside frames per second, or beside latencies where there was a rate.

use std::path::Path;

use anyhow::Result;
use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use plotters::style::text_anchor::Pos;
use plotters::style::text_anchor::VPos;

use crate::bench::result::BenchResult;
use crate::bench::result::Summary;
use crate::report::thousands;

/// Writes the plot as SVG.
pub(crate) fn draw(result: &BenchResult, path: &Path) -> Result<()> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    // The error of the backend borrows what it was told to draw on.
    draw_on(&root, result).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type DrawResult = Result<(), Box<dyn std::error::Error>>;

fn draw_on(root: &Area<'_>, result: &BenchResult) -> DrawResult {
    root.fill(&WHITE)?;
    let title = format!(
        "{} outputs, {} connections, {} ({})",
        result.outputs, result.connections, result.transport, result.machine.processor
    );
    let (left, right) = root.titled(&title, (FONT, 22))?.split_horizontally(SIZE.0 / 2);
    let bar = |(index, summary): (usize, &Summary)| {
        let value = summary.cpu_ns_per_frame?.median;
        let ratio = summary.ratio_to_floor.map_or(String::new(), |ratio| format!(" ({:.2}x)", ratio.median));
        let name = summary.contender.clone();
        Some(Bar { colour: colour(&name, index), name, value, label: format!("{value:.0}{ratio}") })
    };
    let costs: Vec<Bar> = result.summary.iter().enumerate().filter_map(bar).collect();
    bars(&left, "CPU per frame, ns", &costs)?;
    let bar = |(index, summary): (usize, &Summary)| {
        let value = summary.frames_per_second.median;
        let name = summary.contender.clone();
        Bar { colour: colour(&name, index), name, value, label: format!("{:.2} M", value / 1e6) }
    };
    if result.has_rate {
        latencies(&right, result)?;
    } else {
        bars(&right, "frames per second", &result.summary.iter().enumerate().map(bar).collect::<Vec<_>>())?;
    }
    root.present()?;
    Ok(())
}

struct Bar {
    name: String,
    colour: RGBColor,
    value: f64,
    label: String,
}

/// A bar for every contender.
fn bars(area: &Area<'_>, title: &str, bars: &[Bar]) -> DrawResult {
    let top = bars.iter().map(|bar| bar.value).fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 19))
        .margin(12)
        .x_label_area_size(28)
        .y_label_area_size(80)
        .build_cartesian_2d(-0.5..bars.len() as f64 - 0.5, 0.0..top)?;
    // One label at the middle of every bar.
    let name = |x: &f64| {
        let nearest = x.round();
        let bar = bars.get(nearest as usize).filter(|_| (x - nearest).abs() < 0.01 && nearest >= 0.0);
        bar.map(|bar| bar.name.clone()).unwrap_or_default()
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .label_style((FONT, 16))
        .x_labels(2 * bars.len() + 1)
        .x_label_formatter(&name)
        .y_label_formatter(&|y| thousands(*y as u64))
        .draw()?;
    chart.draw_series((0..).zip(bars).map(|(index, bar)| {
        let middle = f64::from(index);
        Rectangle::new([(middle - 0.35, 0.0), (middle + 0.35, bar.value)], bar.colour.filled())
    }))?;
    let style = TextStyle::from((FONT, 16)).pos(Pos::new(HPos::Center, VPos::Bottom));
    chart.draw_series((0..).zip(bars).map(|(index, bar)| {
        Text::new(bar.label.clone(), (f64::from(index), bar.value + top * 0.01), style.clone())
    }))?;
    Ok(())
}

/// Latency over percentile, a line for every contender; the further right, the rarer.
fn latencies(area: &Area<'_>, result: &BenchResult) -> DrawResult {
    let curve = |summary: &Summary| -> Vec<(f64, f64)> {
        let histogram = result.latency_of(&summary.contender);
        let nines = (0..=40).map(|step| f64::from(step) / 10.0);
        nines.map(|nines| (nines, us(histogram.value_at_quantile(1.0 - 0.1_f64.powf(nines))))).collect()
    };
    let curves: Vec<(&str, Vec<(f64, f64)>)> =
        result.summary.iter().map(|summary| (&*summary.contender, curve(summary))).collect();
    let top = curves.iter().flat_map(|(_, curve)| curve).map(|(_, us)| *us).fold(10.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption("latency by percentile, microseconds", (FONT, 19))
        .margin(12)
        .x_label_area_size(28)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..4.0, (1.0..top * 1.2).log_scale())?;
    chart
        .configure_mesh()
        .label_style((FONT, 16))
        .x_labels(5)
        .x_label_formatter(&|nines| format!("{}%", 100.0 * (1.0 - 0.1_f64.powf(*nines))))
        .y_label_formatter(&|us| thousands(*us as u64))
        .draw()?;
    for (index, (contender, curve)) in curves.into_iter().enumerate() {
        let colour = colour(contender, index);
        let line = LineSeries::new(curve, colour.stroke_width(2));
        let legend = move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2));
        chart.draw_series(line)?.label(contender).legend(legend);
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .draw()?;
    Ok(())
}

fn us(nanos: u64) -> f64 {
    // A logarithmic axis has no zero.
    (nanos as f64 / 1e3).max(1.0)
}

/// A contender's colour; variants have one by their place.
fn colour(contender: &str, index: usize) -> RGBColor {
    match contender {
        "relay" => RGBColor(0, 114, 178),
        "floor" => RGBColor(120, 120, 120),
        "dnstap" => RGBColor(213, 94, 0),
        "haproxy" => RGBColor(0, 158, 115),
        "socat" => RGBColor(204, 121, 167),
        "direct" => RGBColor(0, 0, 0),
        _ => VARIANTS[index % VARIANTS.len()],
    }
}

const VARIANTS: [RGBColor; 3] = [RGBColor(230, 159, 0), RGBColor(86, 180, 233), RGBColor(148, 103, 189)];
const FONT: &str = "sans-serif";
const SIZE: (u32, u32) = (1000, 420);

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;

    use crate::bench::result::tests::result;

    #[test]
    fn every_contender_has_its_bar_and_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        for has_rate in [false, true] {
            draw(&BenchResult { has_rate, ..result(150) }, &path).unwrap();
            let svg = fs::read_to_string(&path).unwrap();
            assert!(svg.contains("relay") && svg.contains("floor") && svg.contains("150 (1.50x)"), "{svg}");
            assert_eq!(svg.contains("99.9%"), has_rate);
            assert!(svg.trim_end().ends_with("</svg>"));
        }
    }
}
