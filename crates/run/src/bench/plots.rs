//! Plots of a report as SVG, in black on nothing: the page's style sheet gives them the colours of its theme.

use std::collections::BTreeSet;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::load::Load;
use super::report::{Cell, Report, TargetReport};
use super::statistics::Spread;

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

/// Beside the engine, on threads of its own.
const PREPARE: (&str, &str) = ("prepare, beside", "prepare_share");

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
    add("Rows a second by requests in flight", against(by_load(report, closed), "requests in flight"));
    add("Rows a second by requests a second", against(by_load(report, open), "requests sent a second"));
    add("Rows a second by batch size", against(by_batch(report), "batch size"));
    let loads: Vec<Load> = report.cells.iter().fold(Vec::new(), |mut loads, cell| {
        if !loads.contains(&cell.load) {
            loads.push(cell.load);
        }
        loads
    });
    for load in loads {
        let title = format!("Latency, {load}: share of answers that ended within");
        add(&title, latency(report, load, |request| Some(request.ended - request.due)));
        let title = format!("Time to the first piece, {load}: share of answers that began within");
        add(&title, latency(report, load, |request| Some(request.first? - request.due)));
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

/// A place on the horizontal axis, and rows a second there: median and quartiles.
type Point = (f64, Spread);

fn rows_per_second(cell: &Cell) -> Option<Spread> {
    cell.summary.get("rows_per_second").copied()
}

/// A line for each backend, by its loads.
fn by_load(report: &Report, of: fn(Load) -> Option<f64>) -> Vec<(String, Vec<Point>)> {
    let line = |target: &TargetReport| {
        let mine = report.cells.iter().filter(|cell| cell.target == target.name);
        let points = mine.filter_map(|cell| Some((of(cell.load)?, rows_per_second(cell)?)));
        (target.name.clone(), points.collect())
    };
    report.targets.iter().map(line).collect()
}

/// A line for each series of batch sizes and each load.
fn by_batch(report: &Report) -> Vec<(String, Vec<Point>)> {
    let mut lines: Vec<(String, Vec<Point>)> = Vec::new();
    for cell in &report.cells {
        let target = report.targets.iter().find(|target| target.name == cell.target);
        let sweep = target.and_then(|target| target.sweep.as_ref());
        let (Some(sweep), Some(spread)) = (sweep, rows_per_second(cell)) else { continue };
        let (name, point) = (format!("{}, {}", sweep.of, cell.load), (sweep.batch_size as f64, spread));
        match lines.iter_mut().find(|(known, _)| *known == name) {
            Some((_, points)) => points.push(point),
            None => lines.push((name, vec![point])),
        }
    }
    lines
}

/// Throughput along an axis, with quartiles.
fn against(mut lines: Vec<(String, Vec<Point>)>, x_name: &str) -> Option<String> {
    lines.iter_mut().for_each(|(_, points)| points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    let all = || lines.iter().flat_map(|(_, points)| points);
    let places: BTreeSet<u64> = all().map(|point| point.0.to_bits()).collect();
    if places.len() < 2 {
        return None;
    }
    let right = all().map(|point| point.0).fold(0.0, f64::max) * 1.05;
    let top = all().map(|point| point.1.q3).fold(0.0, f64::max) * 1.1;
    draw(SIZE, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..right, 0.0..top.max(f64::MIN_POSITIVE))?;
        chart.configure_mesh().disable_x_mesh().max_light_lines(0).x_desc(x_name).y_desc("rows/s").draw()?;
        for (number, (name, points)) in lines.iter().enumerate() {
            let style = colour(number).stroke_width(2);
            let line = LineSeries::new(points.iter().map(|p| (p.0, p.1.median)), style);
            let series = chart.draw_series(line)?.label(name.as_str());
            series.legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style));
            chart.draw_series(points.iter().map(|p| Circle::new((p.0, p.1.median), 3, colour(number).filled())))?;
            let quartiles = |p: &Point| PathElement::new(vec![(p.0, p.1.q1), (p.0, p.1.q3)], style);
            chart.draw_series(points.iter().map(quartiles))?;
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

/// Shares of the engine's time, a bar for each backend and load; preparation, which runs beside it, as a thin one below.
fn stages(report: &Report) -> Option<String> {
    let bars: Vec<(String, Vec<f64>, f64)> = report
        .cells
        .iter()
        .filter(|cell| cell.summary.contains_key("decode_share"))
        .map(|cell| {
            let share = |metric: &str| cell.summary.get(metric).map_or(0.0, |spread| spread.median);
            let shares = STAGES.iter().map(|(_, metric)| share(metric)).collect();
            (format!("{}, {}", cell.target, cell.load), shares, share(PREPARE.1))
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
        for (number, (name, _)) in STAGES.iter().chain([&PREPARE]).enumerate() {
            let x = left + number as i32 * 64 - 60;
            area.draw(&Rectangle::new([(x, 10), (x + 12, 22)], colour(number).filled()))?;
            area.draw(&Text::new((*name).to_owned(), (x + 16, 10), font.clone()))?;
        }
        for (at, (name, shares, prepare)) in bars.iter().enumerate() {
            let y = 36 + line * at as i32;
            let shown: String = name.chars().take(34).collect();
            area.draw(&Text::new(shown, (4, y + 3), font.clone()))?;
            let mut begin = 0.0;
            let place = |share: f64| left + (f64::from(right - left) * share.clamp(0.0, 1.0)) as i32;
            for (number, share) in shares.iter().enumerate() {
                let box_ = [(place(begin), y), (place(begin + share), y + 14)];
                area.draw(&Rectangle::new(box_, colour(number).filled()))?;
                begin += share;
            }
            let beside = [(left, y + 16), (place(*prepare), y + 19)];
            area.draw(&Rectangle::new(beside, colour(STAGES.len()).filled()))?;
        }
        Ok(())
    })
}
