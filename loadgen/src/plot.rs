//! The plot of a benchmark: CPU per frame beside frames per second, or beside latencies where there was a rate.

use std::path::Path;

use anyhow::Result;
use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::bench::contender::Contender;
use crate::bench::result::BenchResult;
use crate::bench::result::Summary;
use crate::bench::result::merged_latency;
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
    let (left, right) = root.titled(&title, ("sans-serif", 20))?.split_horizontally(SIZE.0 / 2);
    bars(&left, "CPU per frame, ns", &result.summary, |summary| summary.cpu_ns_per_frame.median)?;
    if result.has_rate {
        latencies(&right, result)?;
    } else {
        bars(&right, "frames per second", &result.summary, |summary| summary.frames_per_second.median)?;
    }
    root.present()?;
    Ok(())
}

/// A bar for every contender.
fn bars(area: &Area<'_>, title: &str, summaries: &[Summary], value: impl Fn(&Summary) -> f64) -> DrawResult {
    let top = summaries.iter().map(&value).fold(0.0, f64::max).max(1.0) * 1.1;
    let names: Vec<&str> = summaries.iter().map(|summary| summary.contender.name()).collect();
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(28)
        .y_label_area_size(80)
        .build_cartesian_2d(-0.5..names.len() as f64 - 0.5, 0.0..top)?;
    // One label at the middle of every bar.
    let label = |x: &f64| {
        let nearest = x.round();
        let name = names.get(nearest as usize).filter(|_| (x - nearest).abs() < 0.01 && nearest >= 0.0);
        name.map(ToString::to_string).unwrap_or_default()
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(2 * names.len() + 1)
        .x_label_formatter(&label)
        .y_label_formatter(&|y| thousands(*y as u64))
        .draw()?;
    chart.draw_series(summaries.iter().enumerate().map(|(index, summary)| {
        let middle = index as f64;
        let corners = [(middle - 0.35, 0.0), (middle + 0.35, value(summary))];
        Rectangle::new(corners, colour(summary.contender).filled())
    }))?;
    chart.draw_series(summaries.iter().enumerate().map(|(index, summary)| {
        let text = thousands(value(summary).round() as u64);
        Text::new(text, (index as f64 - 0.3, value(summary) + top * 0.03), ("sans-serif", 13))
    }))?;
    Ok(())
}

/// Latency over percentile, a line for every contender; the further right, the rarer.
fn latencies(area: &Area<'_>, result: &BenchResult) -> DrawResult {
    let curve = |summary: &Summary| -> Vec<(f64, f64)> {
        let rounds = result.rounds.iter().filter(|round| round.contender == summary.contender);
        let histogram = merged_latency(&rounds.collect::<Vec<_>>());
        let nines = (0..=40).map(|step| f64::from(step) / 10.0);
        nines.map(|nines| (nines, us(histogram.value_at_quantile(1.0 - 0.1_f64.powf(nines))))).collect()
    };
    let curves: Vec<(Contender, Vec<(f64, f64)>)> =
        result.summary.iter().map(|summary| (summary.contender, curve(summary))).collect();
    let top = curves.iter().flat_map(|(_, curve)| curve).map(|(_, us)| *us).fold(10.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption("latency by percentile, microseconds", ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(28)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..4.0, (1.0..top * 1.2).log_scale())?;
    chart
        .configure_mesh()
        .x_labels(5)
        .x_label_formatter(&|nines| format!("{}%", 100.0 * (1.0 - 0.1_f64.powf(*nines))))
        .y_label_formatter(&|us| thousands(*us as u64))
        .draw()?;
    for (contender, curve) in curves {
        let colour = colour(contender);
        let line = LineSeries::new(curve, colour.stroke_width(2));
        let legend = move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2));
        chart.draw_series(line)?.label(contender.name()).legend(legend);
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

fn colour(contender: Contender) -> RGBColor {
    match contender {
        Contender::Relay => RGBColor(0, 114, 178),
        Contender::Floor => RGBColor(120, 120, 120),
        Contender::Dnstap => RGBColor(213, 94, 0),
        Contender::Haproxy => RGBColor(0, 158, 115),
        Contender::Socat => RGBColor(204, 121, 167),
    }
}

const SIZE: (u32, u32) = (1000, 420);
