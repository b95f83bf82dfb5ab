//! Line charts, as SVG.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 55.0;
/// Distinguishable for most kinds of colour blindness (Okabe and Ito, 2008).
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// One line: points in the order of x.
pub(super) struct Line {
    pub(super) name: String,
    /// What others printed.
    pub(super) is_dashed: bool,
    /// An index of `COLOURS`.
    pub(super) colour: usize,
    pub(super) points: Vec<(f64, f64)>,
}

/// A chart of several lines. Its y axis begins at zero.
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) x: &'a str,
    pub(super) y: &'a str,
    /// Where x has powers of ten.
    pub(super) is_log: bool,
    pub(super) lines: Vec<Line>,
}

impl Chart<'_> {
    pub(super) fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| line.points.iter().copied());
        let xs: Vec<f64> = points().map(|point| self.scaled(point.0)).collect();
        let least = xs.iter().copied().fold(f64::INFINITY, f64::min).min(1e9);
        let most = xs.iter().copied().fold(least, f64::max).max(least + 1e-9);
        let top = points().map(|point| point.1).fold(1e-9, f64::max) * 1.05;
        let place_x =
            |x: f64| LEFT + (self.scaled(x) - least) / (most - least) * (WIDTH - LEFT - RIGHT);
        let place_y = |y: f64| HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{}</text>\n",
            escaped(self.title)
        );
        let mut ticks: Vec<f64> = points().map(|point| point.0).collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        for value in ticks {
            let at = place_x(value);
            stroke(&mut svg, (at, TOP), (at, HEIGHT - BOTTOM), "#dddddd", "");
            label(&mut svg, (at, HEIGHT - BOTTOM + 18.0), "middle", &value.to_string());
        }
        let step = step(top);
        for n in 0..=(top / step) as u32 {
            let value = f64::from(n) * step;
            let at = place_y(value);
            stroke(&mut svg, (LEFT, at), (WIDTH - RIGHT, at), "#dddddd", "");
            let digits = if step < 1.0 { 1 } else { 0 };
            label(&mut svg, (LEFT - 8.0, at + 4.0), "end", &format!("{value:.digits$}"));
        }
        label(&mut svg, ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 14.0), "middle", self.x);
        label(&mut svg, (LEFT, TOP - 8.0), "middle", self.y);
        for (n, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[line.colour % COLOURS.len()];
            let dash = if line.is_dashed { " stroke-dasharray=\"6 4\"" } else { "" };
            let mut path = String::new();
            for &(x, y) in &line.points {
                // Writing into a string cannot fail.
                let _ = write!(path, "{:.1},{:.1} ", place_x(x), place_y(y));
            }
            let _ = writeln!(
                svg,
                "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" \
                 stroke-width=\"2\"{dash}/>"
            );
            let (at, from) = (TOP + 18.0 * n as f64, WIDTH - RIGHT + 14.0);
            stroke(&mut svg, (from, at), (from + 24.0, at), colour, dash);
            label(&mut svg, (from + 30.0, at + 4.0), "start", &line.name);
        }
        svg + "</svg>\n"
    }

    fn scaled(&self, x: f64) -> f64 {
        if self.is_log { x.max(1e-9).log10() } else { x }
    }
}

/// A round number of which about six make `top`.
fn step(top: f64) -> f64 {
    let power = 10f64.powf((top / 6.0).log10().floor());
    [1.0, 2.0, 5.0]
        .map(|n| n * power)
        .into_iter()
        .find(|step| top / step <= 7.0)
        .unwrap_or(10.0 * power)
}

fn stroke(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str, dash: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"{dash}/>",
        from.0, from.1, to.0, to.1
    );
}

fn label(svg: &mut String, (x, y): (f64, f64), anchor: &str, what: &str) {
    let what = escaped(what);
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{what}</text>");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_lies_on_the_paper() {
        let line = |points| Line { name: "a & b".into(), is_dashed: false, colour: 7, points };
        for is_log in [false, true] {
            let lines = vec![line(vec![(1.0, 0.3), (1000.0, 4.0)]), line(vec![])];
            let svg = Chart { title: "t < u", x: "x", y: "y", is_log, lines }.svg();
            assert!(svg.contains("t &lt; u") && svg.contains("a &amp; b"), "{svg}");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            let (x, y) = (WIDTH - RIGHT, TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - 1.0 / 1.05));
            assert!(
                svg.contains(&format!("{x:.1},{y:.1} \"")),
                "the last point is the highest: {svg}"
            );
        }
    }

    #[test]
    fn steps_are_round() {
        for (top, expected) in [(3.9, 1.0), (40.0, 10.0), (7.0, 1.0), (0.9, 0.2), (120.0, 20.0)] {
            assert!((step(top) - expected).abs() < 1e-9, "{top}: {}", step(top));
        }
    }
}
