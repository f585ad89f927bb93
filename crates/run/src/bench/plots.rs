//! Plots of a report as SVG, in black on nothing: the page's style sheet gives them the colours of its theme.

use std::collections::BTreeSet;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::load::Load;
use super::report::{Cell, Report};

const SIZE: (u32, u32) = (640, 360);

/// Told apart also by those who see few colours (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(140, 140, 140),
];

const STAGES: [(&str, &str); 5] = [
    ("encode", "encode_share"),
    ("prefill", "prefill_share"),
    ("decode", "decode_share"),
    ("sample", "sample_share"),
    ("idle", "wait_share"),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

fn colour(number: usize) -> RGBColor {
    COLOURS[number % COLOURS.len()]
}

/// A plot, or nothing if it can't be drawn.
fn draw((width, height): (u32, u32), plot: impl FnOnce(&Area<'_>) -> Drawn) -> Option<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        plot(&area).ok()?;
        area.present().ok()?;
    }
    // The page decides the size.
    Some(svg.replacen(
        &format!("width=\"{width}\" height=\"{height}\" viewBox"),
        "class=\"plot\" role=\"img\" viewBox",
        1,
    ))
}

/// All plots with their titles.
pub(super) fn plots(report: &Report) -> Vec<(String, String)> {
    let mut plots = Vec::new();
    let mut add = |title: &str, svg: Option<String>| plots.extend(svg.map(|svg| (title.to_owned(), svg)));
    add("Rows a second by requests in flight", against(report, closed, "requests in flight", "rows/s"));
    add("Rows a second by requests a second", against(report, open, "requests sent a second", "rows/s"));
    let loads: Vec<Load> = report.cells.iter().fold(Vec::new(), |mut loads, cell| {
        if !loads.contains(&cell.load) {
            loads.push(cell.load);
        }
        loads
    });
    for load in loads {
        let title = format!("Latency, {load}: share of answers that ended within");
        add(&title, latency(report, load, |request| Some(request.ended - request.sent)));
        let title = format!("Time to the first piece, {load}: share of answers that began within");
        add(&title, latency(report, load, |request| Some(request.first? - request.sent)));
    }
    add("Where the time goes", stages(report));
    plots
}

fn closed(load: Load) -> Option<f64> {
    match load {
        Load::Closed { concurrency } => Some(concurrency as f64),
        _ => None,
    }
}

fn open(load: Load) -> Option<f64> {
    match load {
        Load::Open { rate } => Some(rate),
        _ => None,
    }
}

/// Throughput by load, with quartiles.
fn against(report: &Report, of: fn(Load) -> Option<f64>, x_name: &str, y_name: &str) -> Option<String> {
    let points = |target: &str| -> Vec<(f64, f64, f64, f64)> {
        let mine = report.cells.iter().filter(|cell| cell.target == target);
        let mut points: Vec<_> = mine
            .filter_map(|cell| {
                let spread = cell.summary.get("rows_per_second")?;
                Some((of(cell.load)?, spread.median, spread.q1, spread.q3))
            })
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    let lines: Vec<_> = report.targets.iter().map(|target| (&target.name, points(&target.name))).collect();
    let all = || lines.iter().flat_map(|(_, points)| points);
    let places: BTreeSet<u64> = all().map(|point| point.0.to_bits()).collect();
    if places.len() < 2 {
        return None;
    }
    let right = all().map(|point| point.0).fold(0.0, f64::max) * 1.05;
    let top = all().map(|point| point.3).fold(0.0, f64::max) * 1.1;
    draw(SIZE, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..right, 0.0..top.max(f64::MIN_POSITIVE))?;
        chart.configure_mesh().disable_x_mesh().max_light_lines(0).x_desc(x_name).y_desc(y_name).draw()?;
        for (number, (name, points)) in lines.iter().enumerate() {
            let style = colour(number).stroke_width(2);
            let line = LineSeries::new(points.iter().map(|p| (p.0, p.1)), style);
            let series = chart.draw_series(line)?.label(name.as_str());
            series.legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style));
            chart.draw_series(points.iter().map(|p| Circle::new((p.0, p.1), 3, colour(number).filled())))?;
            chart.draw_series(points.iter().map(|p| PathElement::new(vec![(p.0, p.2), (p.0, p.3)], style)))?;
        }
        chart.configure_series_labels().position(SeriesLabelPosition::LowerRight).border_style(TRANSPARENT).draw()?;
        Ok(())
    })
}

/// Distributions of a time under a load, all repeats pooled.
fn latency(report: &Report, load: Load, of: impl Fn(&super::RequestRecord) -> Option<f64>) -> Option<String> {
    let times = |cell: &Cell| -> Vec<f64> {
        let requests = cell.runs.iter().flat_map(|run| &run.requests).filter(|request| request.error.is_none());
        let mut times: Vec<f64> = requests.filter_map(&of).collect();
        times.sort_by(f64::total_cmp);
        times
    };
    let mut lines = Vec::new();
    for (number, target) in report.targets.iter().enumerate() {
        let cell = report.cells.iter().find(|cell| cell.target == target.name && cell.load == load);
        let times = cell.map(times).unwrap_or_default();
        if !times.is_empty() {
            lines.push((number, &target.name, times));
        }
    }
    let right = lines.iter().filter_map(|(_, _, times)| times.last()).copied().fold(0.0, f64::max) * 1.05;
    if right <= 0.0 {
        return None;
    }
    draw(SIZE, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(50)
            .build_cartesian_2d(0.0..right, 0.0..1.0)?;
        chart.configure_mesh().disable_x_mesh().max_light_lines(0).x_desc("seconds").draw()?;
        for (number, name, times) in &lines {
            let style = colour(*number).stroke_width(2);
            let count = times.len() as f64;
            let steps = times
                .iter()
                .enumerate()
                .flat_map(|(at, time)| [(*time, at as f64 / count), (*time, (at + 1) as f64 / count)]);
            let series = chart.draw_series(LineSeries::new(steps, style))?.label(name.as_str());
            series.legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style));
        }
        chart.configure_series_labels().position(SeriesLabelPosition::LowerRight).border_style(TRANSPARENT).draw()?;
        Ok(())
    })
}

/// Shares of the engine's time, a bar for each backend and load.
fn stages(report: &Report) -> Option<String> {
    let bars: Vec<(String, Vec<f64>)> = report
        .cells
        .iter()
        .filter(|cell| cell.summary.contains_key("decode_share"))
        .map(|cell| {
            let share = |metric: &str| cell.summary.get(metric).map_or(0.0, |spread| spread.median);
            let shares = STAGES.iter().map(|(_, metric)| share(metric)).collect();
            (format!("{}, {}", cell.target, cell.load), shares)
        })
        .collect();
    if bars.is_empty() {
        return None;
    }
    let (width, line) = (SIZE.0 as i32, 26);
    let (left, right) = (230, width - 20);
    let height = 50 + line * bars.len() as i32;
    draw((width as u32, height as u32), |area| {
        let font = ("sans-serif", 13).into_font();
        for (number, (name, _)) in STAGES.iter().enumerate() {
            let x = left + number as i32 * 78;
            area.draw(&Rectangle::new([(x, 10), (x + 12, 22)], colour(number).filled()))?;
            area.draw(&Text::new((*name).to_owned(), (x + 16, 10), font.clone()))?;
        }
        for (at, (name, shares)) in bars.iter().enumerate() {
            let y = 36 + line * at as i32;
            let shown: String = name.chars().take(34).collect();
            area.draw(&Text::new(shown, (4, y + 3), font.clone()))?;
            let mut begin = 0.0;
            for (number, share) in shares.iter().enumerate() {
                let place = |share: f64| left + (f64::from(right - left) * share.clamp(0.0, 1.0)) as i32;
                let box_ = [(place(begin), y), (place(begin + share), y + 18)];
                area.draw(&Rectangle::new(box_, colour(number).filled()))?;
                begin += share;
            }
        }
        Ok(())
    })
}
