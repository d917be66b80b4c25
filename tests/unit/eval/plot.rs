//! Tests of `eval::plot`.

use super::*;

#[test]
fn colours_run_from_red_over_yellow_to_green() {
    let [red, yellow, green] = [heat(0.0), heat(0.5), heat(1.0)];
    assert_eq!((red, yellow, green), (RGBColor(229, 83, 75), RGBColor(250, 225, 130), RGBColor(87, 180, 106)));
    assert_eq!((heat(-1.0), heat(7.0), heat(f64::NAN)), (red, green, red));
}

#[test]
fn a_map_has_a_rectangle_for_each_cell_and_its_words() {
    let cell = |colour: f64| Some(Cell { colour, label: format!("{:.0}%", colour * 100.0) });
    let map = |title: &str| Map {
        title: title.into(),
        columns: vec!["512".into(), "1024".into()],
        rows: vec!["0%".into(), "100%".into(), "<&".into()],
        cells: vec![cell(0.0), cell(0.25), cell(0.5), cell(1.0), None, cell(0.75)],
    };
    let svg = maps(&[map("l2"), map("window"), map("a"), map("b")], "tokens", "depth").unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    assert_eq!(svg.matches("<rect").count(), 1 + 4 * 6, "the ground and the cells");
    assert!(["l2", "window", "25%", "1024", "tokens", "depth", "&lt;&amp;"].iter().all(|word| svg.contains(word)), "{svg}");
    assert!(svg.contains("#57B46A") && svg.contains("#E5534B"), "{svg}");
}

#[test]
fn curves_are_drawn_by_name_and_nothing_is_refused() {
    let curve = |name: &str| Curve { name: name.into(), points: vec![(1.0, 1.2), (2.0, 1.05), (4.0, f64::NAN)] };
    let svg = curves("ratio", "perplexity", &[curve("l2"), curve("window")]).unwrap();
    assert!(svg.contains("l2") && svg.contains("window") && svg.matches("<polyline").count() >= 2, "{svg}");
    assert!(curves("one", "y", &[Curve { name: "a".into(), points: vec![(1.0, 1.0)] }]).is_ok());
    assert!(curves("none", "y", &[]).is_err());
}
