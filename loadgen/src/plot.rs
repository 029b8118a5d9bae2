//! Plots of benchmarks: one result, several by their number of outputs, and latencies by percentile.

use std::path::Path;
use std::path::PathBuf;

use anyhow::Result;
use anyhow::anyhow;
use anyhow::bail;
use clap::Args;
use clap::ValueEnum;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use plotters::style::text_anchor::Pos;
use plotters::style::text_anchor::VPos;

use crate::bench::result::BenchResult;
use crate::bench::result::Spread;
use crate::bench::result::Summary;
use crate::report::thousands;

/// Draw results of `bench --json` as SVG
///
/// By outputs: CPU per frame and frames per second, a group of bars for each result. By percentile: the latencies of one
/// result that had a rate.
///
/// Examples: loadgen plot --by outputs one.json two.json four.json --out outputs.svg;
/// loadgen plot --by percentile latency.json --out latency.svg
#[derive(Debug, Args)]
pub(crate) struct PlotArgs {
    /// The results
    #[arg(value_name = "RESULT.json", required = true)]
    results: Vec<PathBuf>,
    /// What the x axis shows
    #[arg(long, value_enum)]
    by: By,
    /// The file to write
    #[arg(long, value_name = "FILE.svg")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    /// Outputs of the relay
    Outputs,
    /// How many frames are faster
    Percentile,
}

/// Reads the results and draws them.
pub(crate) fn run(args: &PlotArgs) -> Result<()> {
    let results = args.results.iter().map(|path| BenchResult::read(path)).collect::<Result<Vec<_>>>()?;
    match (args.by, &results[..]) {
        (By::Outputs, results) => onto(&args.out, |root| by_outputs(root, results)),
        (By::Percentile, [result]) if result.has_rate => onto(&args.out, |root| latencies(root, result)),
        (By::Percentile, _) => bail!("latencies are drawn of one result that had a rate"),
    }
}

/// Writes the plot of one result.
pub(crate) fn draw(result: &BenchResult, path: &Path) -> Result<()> {
    onto(path, |root| one_result(root, result))
}

fn onto(path: &Path, draw: impl Fn(&Area<'_>) -> DrawResult) -> Result<()> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    // White also where the page is dark. The error of the backend borrows what it was told to draw on.
    let drawn =
        root.fill(&WHITE).map_err(Into::into).and_then(|()| draw(&root)).and_then(|()| Ok(root.present()?));
    drawn.map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type DrawResult = Result<(), Box<dyn std::error::Error>>;

fn one_result(root: &Area<'_>, result: &BenchResult) -> DrawResult {
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
    Ok(())
}

/// CPU per frame beside frames per second: a group of bars for each number of outputs, a bar for each contender.
fn by_outputs(root: &Area<'_>, results: &[BenchResult]) -> DrawResult {
    let mut results: Vec<&BenchResult> = results.iter().collect();
    results.sort_by_key(|result| result.outputs);
    let (left, right) = root.split_horizontally(SIZE.0 / 2);
    let cpu = |summary: &Summary| summary.cpu_ns_per_frame;
    groups(&left, &results, "CPU per frame, ns (logarithmic)", &cpu, 1.0, true)?;
    let speed = |summary: &Summary| Some(summary.frames_per_second);
    groups(&right, &results, "million frames per second", &speed, 1e6, false)
}

/// Bars with their quartiles, from 1 on a logarithmic axis or from 0.
fn groups(
    area: &Area<'_>,
    results: &[&BenchResult],
    title: &str,
    value: &dyn Fn(&Summary) -> Option<Spread>,
    unit: f64,
    logarithmic: bool,
) -> DrawResult {
    let names = contenders(results);
    let scaled = |value: f64| if logarithmic { (value / unit).max(1.0).log10() } else { value / unit };
    let mut drawn = Vec::new();
    for (group, result) in (0..).zip(results) {
        for (index, name) in names.iter().enumerate() {
            let summary = result.summary.iter().find(|summary| summary.contender == *name);
            let Some(spread) = summary.and_then(value) else { continue };
            let width = 0.8 / names.len() as f64;
            let left = f64::from(group) - 0.4 + width * index as f64;
            drawn.push((index, left, left + 0.9 * width, spread));
        }
    }
    let top = drawn.iter().map(|(_, _, _, spread)| scaled(spread.quartiles.1)).fold(0.1, f64::max) * 1.1;
    // The names stand once, in the second chart, right of its bars.
    let right_end = results.len() as f64 - if logarithmic { 0.5 } else { -0.3 };
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 19))
        .margin(12)
        .x_label_area_size(48)
        .y_label_area_size(70)
        .build_cartesian_2d(-0.5..right_end, 0.0..top)?;
    let outputs = |x: &f64| {
        let nearest = x.round();
        let result = results.get(nearest as usize).filter(|_| (x - nearest).abs() < 0.01 && nearest >= 0.0);
        result.map(|result| result.outputs.to_string()).unwrap_or_default()
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .label_style((FONT, 16))
        .x_desc("outputs")
        .x_labels(2 * results.len() + 1)
        .x_label_formatter(&outputs)
        .y_label_formatter(&|y| match logarithmic {
            // Whole decades only.
            true if (y - y.round()).abs() > 0.01 => String::new(),
            true => thousands(10_f64.powf(*y).round() as u64),
            false => format!("{y:.1}"),
        })
        .draw()?;
    for (index, name) in names.iter().enumerate() {
        let colour = colour(name, index);
        let own = drawn.iter().filter(|(of, ..)| *of == index);
        let bars = own.clone().map(|(_, left, right, spread)| {
            Rectangle::new([(*left, 0.0), (*right, scaled(spread.median))], colour.filled())
        });
        let legend = move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.filled());
        chart.draw_series(bars)?.label(*name).legend(legend);
        chart.draw_series(own.map(|(_, left, right, Spread { quartiles: (low, high), .. })| {
            let middle = f64::midpoint(*left, *right);
            PathElement::new([(middle, scaled(*low)), (middle, scaled(*high))], BLACK)
        }))?;
    }
    if !logarithmic {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .label_font((FONT, 15))
            .background_style(WHITE)
            .draw()?;
    }
    Ok(())
}

/// The contenders of all results, in the order in which they come first.
fn contenders<'a>(results: &[&'a BenchResult]) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for summary in results.iter().flat_map(|result| &result.summary) {
        if !names.contains(&&*summary.contender) {
            names.push(&summary.contender);
        }
    }
    names
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

/// Latency over percentile, a line for every contender; the further right, the rarer. From the least that any frame took.
fn latencies(area: &Area<'_>, result: &BenchResult) -> DrawResult {
    let curve = |summary: &Summary| -> Vec<(f64, f64)> {
        let histogram = result.latency_of(&summary.contender);
        let nines = (0..=40).map(|step| f64::from(step) / 10.0);
        nines.map(|nines| (nines, us(histogram.value_at_quantile(1.0 - 0.1_f64.powf(nines))))).collect()
    };
    let curves: Vec<(&str, Vec<(f64, f64)>)> =
        result.summary.iter().map(|summary| (&*summary.contender, curve(summary))).collect();
    let top = curves.iter().flat_map(|(_, curve)| curve).map(|(_, us)| *us).fold(10.0, f64::max);
    let bottom = curves.iter().filter_map(|(_, curve)| Some(curve.first()?.1)).fold(top, f64::min);
    let mut chart = ChartBuilder::on(area)
        .caption("latency", (FONT, 19))
        .margin(12)
        .margin_right(36)
        .x_label_area_size(48)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..4.0, (bottom * 0.8..top * 1.2).log_scale())?;
    chart
        .configure_mesh()
        .label_style((FONT, 16))
        .x_desc("percentile of frames")
        .y_desc("microseconds")
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
        .label_font((FONT, 15))
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
    use crate::bench::result::tests::result_of;
    use crate::bench::result::tests::timed;

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

    fn svg(draw: impl Fn(&Path)) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        draw(&path);
        fs::read_to_string(&path).unwrap()
    }

    /// Filled rectangles of a colour, without the one in the legend: bars.
    fn bars(svg: &str, colour: &str) -> usize {
        svg.matches(&format!("fill=\"{colour}\"")).count() - 1
    }

    #[test]
    fn every_number_of_outputs_has_a_bar_for_each_contender_that_took_part() {
        let mut two = result(150);
        two.outputs = 2;
        two.summary.retain(|summary| summary.contender == "relay");
        let results = [two, result(150)];
        let svg = svg(|path| onto(path, |root| by_outputs(root, &results)).unwrap());
        assert_eq!((bars(&svg, "#0072B2"), bars(&svg, "#787878")), (4, 2), "{svg}");
        assert!(svg.contains("outputs") && svg.contains("CPU per frame, ns"), "{svg}");
    }

    #[test]
    fn latencies_have_a_line_for_each_contender_and_units() {
        let result = result_of(vec![timed(0, "relay", 70), timed(0, "direct", 20)]);
        let svg = svg(|path| onto(path, |root| latencies(root, &result)).unwrap());
        assert!(svg.contains("microseconds") && svg.contains("99.99%"), "{svg}");
        assert!(svg.contains("direct") && svg.contains("#0072B2"), "{svg}");
    }
}
