//! Line charts, as SVG.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 200.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 60.0;
/// Distinguishable for most kinds of colour blindness (Okabe and Ito, 2008).
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// A chart of several lines.
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Vec<Series>,
}

/// What an axis shows.
pub(crate) struct Axis {
    pub(crate) label: &'static str,
    pub(crate) log: bool,
}

/// One line: points in the order of x.
pub(crate) struct Series {
    pub(crate) name: String,
    /// Dashed lines are figures of others.
    pub(crate) dashed: bool,
    pub(crate) points: Vec<(f64, f64)>,
}

impl Series {
    /// Measured here.
    pub(crate) fn ours(name: &str, points: Vec<(f64, f64)>) -> Series {
        Series { name: name.to_owned(), dashed: false, points }
    }

    /// Measured here, and the same for every x.
    pub(crate) fn flat(name: &str, from: f64, to: f64, y: f64) -> Series {
        Series::ours(name, vec![(from, y), (to, y)])
    }

    /// Measured by others.
    pub(crate) fn theirs(name: &str, points: &[(f64, f64)]) -> Series {
        Series { name: name.to_owned(), dashed: true, points: points.to_vec() }
    }
}

impl Chart {
    /// The lines that were measured here, as a table.
    pub(crate) fn markdown(&self) -> String {
        let ours: Vec<_> = self.series.iter().filter(|series| !series.dashed).collect();
        let mut places: Vec<f64> = ours.iter().flat_map(|s| s.points.iter().map(|p| p.0)).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        let heads: Vec<&str> = ours.iter().map(|series| &*series.name).collect();
        let mut text = format!("| {} | {} |\n|", self.x.label, heads.join(" | "));
        text += &" --- |".repeat(ours.len() + 1);
        text.push('\n');
        for x in places {
            text += &format!("| {x} |");
            for series in &ours {
                let point = series.points.iter().find(|point| point.0 == x);
                let flat = series.points.windows(2).all(|pair| pair[0].1 == pair[1].1);
                let y = point.or(series.points.first().filter(|_| flat)).map(|point| point.1);
                text += &y.map_or(" |".to_owned(), |y| format!(" {} |", cell(y)));
            }
            text.push('\n');
        }
        text + &format!("\n(in {})\n", self.y.label)
    }

    pub(crate) fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| series.points.iter().copied());
        let x = Scale::new(&self.x, points().map(|p| p.0), LEFT, WIDTH - RIGHT);
        let y = Scale::new(&self.y, points().map(|p| p.1), HEIGHT - BOTTOM, TOP);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"28\" font-size=\"16\">{}</text>\n",
            escaped(&self.title)
        );
        for (value, at) in x.ticks() {
            let (low, high) = (HEIGHT - BOTTOM, HEIGHT - BOTTOM + 18.0);
            line(&mut svg, (at, TOP), (at, low), "#dddddd", "");
            text(&mut svg, (at, high), "middle", &short(value));
        }
        for (value, at) in y.ticks() {
            line(&mut svg, (LEFT, at), (WIDTH - RIGHT, at), "#dddddd", "");
            text(&mut svg, (LEFT - 8.0, at + 4.0), "end", &short(value));
        }
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        text(&mut svg, (middle, HEIGHT - 18.0), "middle", self.x.label);
        text(&mut svg, (LEFT, TOP - 8.0), "middle", self.y.label);
        for (n, series) in self.series.iter().enumerate() {
            let colour = COLOURS[n % COLOURS.len()];
            let dash = if series.dashed { " stroke-dasharray=\"6 4\"" } else { "" };
            let mut path = String::new();
            for &(px, py) in &series.points {
                // Writing into a string cannot fail.
                let _ = write!(path, "{:.1},{:.1} ", x.at(px), y.at(py));
            }
            let _ = writeln!(
                svg,
                "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" \
                 stroke-width=\"2\"{dash}/>"
            );
            for &(px, py) in series.points.iter().filter(|_| !series.dashed) {
                let (cx, cy) = (x.at(px), y.at(py));
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3\" fill=\"{colour}\"/>"
                );
            }
            let (at, from) = (TOP + 18.0 * n as f64, WIDTH - RIGHT + 14.0);
            line(&mut svg, (from, at), (from + 24.0, at), colour, dash);
            text(&mut svg, (from + 30.0, at + 4.0), "start", &series.name);
        }
        svg += "</svg>\n";
        svg
    }
}

/// From values to places on the paper.
struct Scale {
    log: bool,
    min: f64,
    max: f64,
    from: f64,
    to: f64,
}

impl Scale {
    fn new(axis: &Axis, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Scale {
        let (mut min, mut max) = (f64::INFINITY, 0.0f64);
        for value in values.filter(|value| value.is_finite() && (!axis.log || *value > 0.0)) {
            (min, max) = (min.min(value), max.max(value));
        }
        if !axis.log || !min.is_finite() {
            min = if axis.log { 1.0 } else { 0.0 };
        }
        if max <= min {
            max = min + 1.0;
        }
        Scale { log: axis.log, min, max, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let part = match self.log {
            true => (value.max(self.min) / self.min).ln() / (self.max / self.min).ln(),
            false => (value - self.min) / (self.max - self.min),
        };
        self.from + part * (self.to - self.from)
    }

    /// Round numbers within the scale: 1, 2 and 5 times powers of ten.
    fn ticks(&self) -> Vec<(f64, f64)> {
        let round = |low: i32, high: i32| {
            (low..=high).flat_map(|power| [1.0, 2.0, 5.0].map(|n| n * 10f64.powi(power)))
        };
        let values: Vec<f64> = match self.log {
            true => round(-6, 12).collect(),
            false => {
                let step = round(-6, 12).find(|step| self.max / step <= 8.0).unwrap_or(self.max);
                (0..=8).map(|n| f64::from(n) * step).collect()
            }
        };
        let inside = |value: &f64| (self.min..=self.max * 1.001).contains(value);
        values.into_iter().filter(inside).map(|value| (value, self.at(value))).collect()
    }
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str, dash: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"{dash}/>",
        from.0, from.1, to.0, to.1
    );
}

fn text(svg: &mut String, at: (f64, f64), anchor: &str, what: &str) {
    let what = escaped(what);
    let (x, y) = at;
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{what}</text>");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// Three digits that say something.
fn cell(value: f64) -> String {
    if value.abs() >= 10.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// 1500000 as 1.5M.
fn short(value: f64) -> String {
    let (value, unit) = match value {
        v if v >= 1e6 => (v / 1e6, "M"),
        v if v >= 1e3 => (v / 1e3, "k"),
        v => (v, ""),
    };
    format!("{}{unit}", (value * 1000.0).round() / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_put_ends_at_ends() {
        for log in [false, true] {
            let axis = Axis { label: "", log };
            let scale = Scale::new(&axis, [1.0, 10.0, 1000.0].into_iter(), 0.0, 300.0);
            assert!((scale.at(1000.0) - 300.0).abs() < 1e-9);
            assert!(scale.ticks().iter().all(|(_, at)| (-1e-9..=300.3).contains(at)));
        }
        let axis = Axis { label: "", log: true };
        let scale = Scale::new(&axis, [1.0, 10.0, 1000.0].into_iter(), 0.0, 300.0);
        assert!((scale.at(10.0) - 100.0).abs() < 1e-9);
    }

    #[test]
    fn a_chart_without_points_is_still_a_chart() {
        let axis = || Axis { label: "x", log: true };
        let chart = Chart { title: "a < b".into(), x: axis(), y: axis(), series: vec![] };
        assert!(chart.svg().contains("a &lt; b"));
    }
}
