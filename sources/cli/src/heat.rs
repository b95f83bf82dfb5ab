//! What was touched when, as a picture.
//!
//! ```text
//!   object, top to bottom ^  # # .        darker: asked for more often
//!                         |    . # #      blue: in place; red: readers waited
//!                         +---------> time
//! ```

use std::{fmt::Write as _, ops::Range};

use pager::trace::{Kind, Record, RegionInfo};
use sources::size;

/// Regions in one picture: those that were asked for most.
const REGIONS_MAX: usize = 8;
const COLUMNS: usize = 160;
const ROWS_MAX: usize = 64;
/// Points of a cell.
const CELL: usize = 5;
/// Letters of a name.
const NAME_MAX: usize = 100;

/// Counts for a picture.
pub(crate) struct Heat {
    ends_us: u64,
    /// For each region, its place in the picture.
    places: Vec<Option<usize>>,
    maps: Vec<Map>,
    opened: usize,
}

#[derive(Default)]
struct Map {
    info: Option<RegionInfo>,
    accesses: u64,
    rows: usize,
    cells: Vec<Cell>,
}

#[derive(Clone, Copy, Default)]
struct Cell {
    accesses: u64,
    waited: u64,
}

impl Heat {
    /// A picture of a trace whose regions were asked for so many times and that ends then.
    pub(crate) fn new(accesses: &[u64], ends_us: u64) -> Heat {
        let mut order: Vec<usize> = (0..accesses.len()).filter(|&n| accesses[n] > 0).collect();
        order.sort_by_key(|&n| (std::cmp::Reverse(accesses[n]), n));
        order.truncate(REGIONS_MAX);
        let mut places = vec![None; accesses.len()];
        let mut maps = Vec::new();
        for region in order {
            places[region] = Some(maps.len());
            maps.push(Map { accesses: accesses[region], ..Map::default() });
        }
        Heat { ends_us, places, maps, opened: 0 }
    }

    /// Takes the next record.
    pub(crate) fn add(&mut self, record: &Record) {
        match record {
            Record::Opened { info, .. } => {
                let place = self.places.get(self.opened).copied().flatten();
                self.opened += 1;
                if let Some(map) = place.map(|place| &mut self.maps[place]) {
                    map.rows = info.units().clamp(1, ROWS_MAX as u64) as usize;
                    map.cells = vec![Cell::default(); map.rows * COLUMNS];
                    map.info = Some(info.clone());
                }
            }
            Record::Access { at_us, region, units, kind } if kind.is_access() => {
                let place = self.places.get(*region as usize).copied().flatten();
                let Some(map) = place.map(|place| &mut self.maps[place]) else { return };
                let column = share(*at_us, self.ends_us.saturating_add(1), COLUMNS);
                map.count(column, units, *kind);
            }
            _ => {}
        }
    }

    /// The picture.
    pub(crate) fn svg(&self) -> String {
        let (left, top, gap) = (8, 44, 34);
        let width = COLUMNS * CELL;
        let height: usize = self.maps.iter().map(|map| map.rows * CELL + gap).sum();
        let (wide, high) = (width + 2 * left, height + top + 4);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{wide}\" height=\"{high}\" \
             viewBox=\"0 0 {wide} {high}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"{wide}\" height=\"{high}\" fill=\"#ffffff\"/>\n\
             <text x=\"{left}\" y=\"16\">What was touched when: {:.3} s from left to right, each object \
             from top to bottom</text>\n\
             <text x=\"{left}\" y=\"31\" fill=\"#555555\">darker: more often; blue: in place; red: \
             readers waited</text>\n",
            self.ends_us as f64 / 1e6
        );
        let mut y = top;
        for map in &self.maps {
            let Some(info) = &map.info else { continue };
            // Writing to a string does not fail.
            let _ = writeln!(
                out,
                "<text x=\"{left}\" y=\"{}\">{} ({}, {} accesses)</text>",
                y + 14,
                escaped(&info.name),
                size::show(info.len),
                map.accesses
            );
            let body = y + 20;
            let _ = writeln!(
                out,
                "<rect x=\"{left}\" y=\"{body}\" width=\"{width}\" height=\"{}\" fill=\"#f2f2f2\"/>",
                map.rows * CELL
            );
            map.draw(left, body, &mut out);
            y += map.rows * CELL + gap;
        }
        out.push_str("</svg>\n");
        out
    }
}

impl Map {
    fn count(&mut self, column: usize, units: &Range<u64>, kind: Kind) {
        let all = self.info.as_ref().map_or(1, RegionInfo::units);
        let (first, last) =
            (share(units.start, all, self.rows), share(units.end - 1, all, self.rows));
        for row in first..=last {
            let cell = &mut self.cells[row * COLUMNS + column];
            cell.accesses += 1;
            cell.waited += u64::from(kind != Kind::Hit);
        }
    }

    fn draw(&self, left: usize, top: usize, out: &mut String) {
        let most = self.cells.iter().map(|cell| cell.accesses).max().unwrap_or(0);
        for (row, cells) in self.cells.chunks(COLUMNS).enumerate() {
            let mut column = 0;
            while column < COLUMNS {
                let colour = colour(cells[column], most);
                let same =
                    cells[column..].iter().take_while(|cell| self::colour(**cell, most) == colour);
                let run = same.count();
                if let Some(colour) = colour {
                    let (x, y) = (left + column * CELL, top + row * CELL);
                    let wide = run * CELL;
                    let _ = writeln!(
                        out,
                        "<rect x=\"{x}\" y=\"{y}\" width=\"{wide}\" height=\"{CELL}\" fill=\"#{:02x}{:02x}{:02x}\"/>",
                        colour[0], colour[1], colour[2]
                    );
                }
                column += run;
            }
        }
    }
}

/// Where `at` of `all` comes to lie among `parts`.
fn share(at: u64, all: u64, parts: usize) -> usize {
    let place = u128::from(at) * parts as u128 / u128::from(all.max(1));
    (place as usize).min(parts - 1)
}

/// `None` where nothing was asked for.
fn colour(cell: Cell, most: u64) -> Option<[u8; 3]> {
    if cell.accesses == 0 {
        return None;
    }
    let strength = (1.0 + cell.accesses as f64).ln() / (1.0 + most as f64).ln();
    // Eight steps of each, so that neighbours become one rectangle.
    let step = |share: f64| (share * 8.0).round() / 8.0;
    let strength = 0.25 + 0.75 * step(strength);
    let waited = step(cell.waited as f64 / cell.accesses as f64);
    let (blue, red) = ([31.0, 90.0, 180.0], [190.0, 30.0, 45.0]);
    let mix = |n: usize| {
        let full = blue[n] + (red[n] - blue[n]) * waited;
        (242.0 + (full - 242.0) * strength).round() as u8
    };
    Some([mix(0), mix(1), mix(2)])
}

/// A name as text of the picture: it may be anything.
fn escaped(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars().take(NAME_MAX) {
        match letter {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            // No XML may hold these.
            letter if letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}') => {
                out.push(' ')
            }
            letter => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_lie_inside() {
        let cases = [
            ("the start", (0, 100, 10), 0),
            ("the end", (99, 100, 10), 9),
            ("an edge", (10, 100, 10), 1),
            ("beyond", (1000, 100, 10), 9),
            ("of nothing", (0, 0, 10), 0),
            ("far out", (u64::MAX, u64::MAX, 160), 159),
        ];
        for (what, (at, all, parts), expected) in cases {
            assert_eq!(share(at, all, parts), expected, "{what}");
        }
    }

    #[test]
    fn names_are_text() {
        assert_eq!(escaped("a<b>&\"c\u{1b}\u{0}"), "a&lt;b&gt;&amp;&quot;c  ");
        assert_eq!(escaped(&"x".repeat(5000)).len(), NAME_MAX);
    }

    #[test]
    fn more_is_darker_and_waiting_is_red() {
        let cell = |accesses, waited| colour(Cell { accesses, waited }, 100);
        assert_eq!(cell(0, 0), None);
        let (light, dark) = (cell(1, 0).unwrap(), cell(100, 0).unwrap());
        assert!(light.iter().zip(dark).all(|(light, dark)| *light > dark), "{light:?} {dark:?}");
        let red = cell(100, 100).unwrap();
        assert!(red[0] > red[2] && dark[2] > dark[0], "{red:?} {dark:?}");
    }
}
