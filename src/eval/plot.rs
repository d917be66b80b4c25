//! Pictures of measurements, as SVG text: maps of shares from red to green, in the colours of the papers, and curves of
//! quality against bytes. Knows nothing of where the numbers come from.

use std::fmt::Display;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::error::{Error, Result, Setting};

/// A map: one cell for each column and row.
pub struct Map {
    pub title: String,
    pub columns: Vec<String>,
    pub rows: Vec<String>,
    /// Row after row; a cell without a number stays grey.
    pub cells: Vec<Option<Cell>>,
}

pub struct Cell {
    /// From 0 (red) to 1 (green).
    pub colour: f64,
    pub label: String,
}

/// Points of one curve, by name.
pub struct Curve {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

const CELL: (i32, i32) = (58, 24);
const LEFT: i32 = 64;
const TOP: i32 = 44;
const BOTTOM: i32 = 40;
const GAP: i32 = 24;
const LABEL: f64 = 12.0;
/// Maps side by side at most.
const MOST_ABREAST: usize = 3;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn failed(e: impl Display) -> Error {
    Error::budget(Setting::Plot, format!("the picture cannot be drawn: {e}; leave it out"))
}

/// All maps in one picture, with what columns and rows are.
pub fn maps(maps: &[Map], column_name: &str, row_name: &str) -> Result<String> {
    let width_of = |map: &Map| LEFT + CELL.0 * map.columns.len() as i32 + GAP;
    let height_of = |map: &Map| TOP + CELL.1 * map.rows.len() as i32 + BOTTOM;
    let abreast = maps.len().clamp(1, MOST_ABREAST);
    // A title needs room of its own, however few columns stand below it.
    let width = maps.iter().map(|map| width_of(map).max(LEFT + 8 * map.title.chars().count() as i32)).max().unwrap_or(1);
    let height = maps.iter().map(height_of).max().unwrap_or(1);
    let size = (width * abreast as i32, height * maps.len().div_ceil(abreast).max(1) as i32);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (size.0 as u32, size.1 as u32)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        for (i, map) in maps.iter().enumerate() {
            let at = (width * (i % abreast) as i32, height * (i / abreast) as i32);
            draw_map(&area, at, map, column_name, row_name)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

fn draw_map(area: &Area, (x, y): (i32, i32), map: &Map, column_name: &str, row_name: &str) -> Result<()> {
    let (n_columns, n_rows) = (map.columns.len() as i32, map.rows.len() as i32);
    let text = |what: &str, at: (i32, i32), size: f64, h: HPos| {
        let style = TextStyle::from(("sans-serif", size).into_font()).pos(Pos::new(h, VPos::Center));
        area.draw(&Text::new(what.to_owned(), (x + at.0, y + at.1), style)).map_err(failed)
    };
    text(&map.title, (LEFT, 14), 14.0, HPos::Left)?;
    text(row_name, (LEFT - 6, TOP - 12), LABEL, HPos::Right)?;
    for (row, name) in map.rows.iter().enumerate() {
        text(name, (LEFT - 6, TOP + CELL.1 * row as i32 + CELL.1 / 2), LABEL, HPos::Right)?;
    }
    let below = TOP + CELL.1 * n_rows;
    for (column, name) in map.columns.iter().enumerate() {
        text(name, (LEFT + CELL.0 * column as i32 + CELL.0 / 2, below + 10), LABEL, HPos::Center)?;
    }
    text(column_name, (LEFT + CELL.0 * n_columns / 2, below + 26), LABEL, HPos::Center)?;
    for (i, cell) in map.cells.iter().enumerate() {
        let (left, top) = (LEFT + CELL.0 * (i as i32 % n_columns), TOP + CELL.1 * (i as i32 / n_columns));
        let corners = [(x + left, y + top), (x + left + CELL.0 - 1, y + top + CELL.1 - 1)];
        let colour = cell.as_ref().map_or(RGBColor(224, 224, 224), |cell| heat(cell.colour));
        area.draw(&Rectangle::new(corners, colour.filled())).map_err(failed)?;
        if let Some(cell) = cell {
            text(&cell.label, (left + CELL.0 / 2, top + CELL.1 / 2), LABEL, HPos::Center)?;
        }
    }
    Ok(())
}

/// Red, yellow, green, for 0, a half and 1.
fn heat(share: f64) -> RGBColor {
    const STOPS: [(f64, f64, f64); 3] = [(229.0, 83.0, 75.0), (250.0, 225.0, 130.0), (87.0, 180.0, 106.0)];
    let place = if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) * 2.0 };
    let (from, to, part) = if place < 1.0 { (STOPS[0], STOPS[1], place) } else { (STOPS[1], STOPS[2], place - 1.0) };
    let mix = |a: f64, b: f64| (a + (b - a) * part).round() as u8;
    RGBColor(mix(from.0, to.0), mix(from.1, to.1), mix(from.2, to.2))
}

/// Curves over bytes in MiB.
pub fn curves(title: &str, y_name: &str, curves: &[Curve]) -> Result<String> {
    let points = || curves.iter().flat_map(|curve| &curve.points).filter(|(x, y)| *x > 0.0 && y.is_finite());
    let span = |of: fn(&(f64, f64)) -> f64| {
        points().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (x, y) = (span(|p| p.0), span(|p| p.1));
    if points().next().is_none() {
        return Err(failed("there is no point to draw"));
    }
    let margin = ((y.1 - y.0) * 0.08).max(y.1.abs() * 1e-3).max(1e-6);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (760, 480)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 16))
            .margin(14)
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..x.1 * 1.05, y.0 - margin..y.1 + margin)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc("arena, MiB")
            .y_desc(y_name)
            .x_label_formatter(&|x| format!("{x:.1}"))
            .light_line_style(WHITE)
            .draw()
            .map_err(failed)?;
        for (i, curve) in curves.iter().enumerate() {
            let colour = Palette99::pick(i).to_rgba();
            let mut points: Vec<_> = curve.points.iter().copied().filter(|(x, y)| *x > 0.0 && y.is_finite()).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            let series = LineSeries::new(points, colour.stroke_width(2)).point_size(3);
            let drawn = chart.draw_series(series).map_err(failed)?;
            drawn.label(&curve.name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        }
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw().map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

#[cfg(test)]
#[path = "../../tests/unit/eval/plot.rs"]
mod tests;
