//! A seeded generator of events like those of a wiki's edit history, for demos and benchmarks.
//!
//! ```text
//!   trail (editor) n:  how many edits ~ (n + 1)^-0.85    about a quarter anonymous
//!   time               bursts of minutes, pauses of weeks, from 2001 to 2016
//!   title              ~ (k + 1)^-0.95, and with probability 0.4 the one of the edit before
//! ```
//!
//! Equal specifications give equal events, on every machine.

use crate::{error::Error, item::Uuid, write::Builder};

/// The fields of the generated events.
pub const FIELDS: [&str; 3] = ["user", "ip", "title"];

/// 2001-01-15, when the history starts.
const TIME_FIRST: u64 = 979_516_800;
/// 2016-03-01, when it ends.
const TIME_END: u64 = 1_456_790_400;

/// What to generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Number of events, at least `trails`.
    pub events: u64,
    /// Number of trails, at least 1.
    pub trails: u64,
    /// Number of distinct titles to choose from, at least 1.
    pub titles: u64,
    /// What makes this history differ from others of the same size.
    pub seed: u64,
}

impl Spec {
    /// `events` events in a twelfth as many trails, over a fifth as many titles.
    pub fn of_events(events: u64, seed: u64) -> Spec {
        Spec { events, trails: (events / 12).max(1), titles: (events / 5).max(10), seed }
    }

    /// As many events as make a package of at least `bytes` bytes, and about a tenth more.
    pub fn of_bytes(bytes: u64, seed: u64) -> Spec {
        // Measured: 9.8 at 5 million events, 9.9 at 28 million, lexicons included.
        Spec::of_events(bytes.saturating_sub(1_400_000).max(1000) / BYTES_PER_EVENT, seed)
    }
}

/// Bytes of the file that an event of [`Spec::of_events`] takes, at least.
const BYTES_PER_EVENT: u64 = 9;

/// One generated event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edit {
    /// The editor.
    pub uuid: Uuid,
    /// Seconds since 1970.
    pub time: u64,
    /// The values of [`FIELDS`]; empty for NULL.
    pub values: [String; 3],
}

/// Calls `event` with each event, trail by trail, each in the order of time.
///
/// # Errors
/// The first error of `event` ends the generation.
pub fn generate<E>(spec: &Spec, mut event: impl FnMut(&Edit) -> Result<(), E>) -> Result<(), E> {
    let mut random = Random(spec.seed ^ 0x5DEE_CE66_D1CE_4E5B);
    let trails = spec.trails.max(1);
    let spare = spec.events.saturating_sub(trails) as f64;
    let titles = PowerLaw::new(spec.titles.max(1), 0.95);
    // The events beyond one each are shared out by the integral of the power law.
    let share = |n: u64| spare * (n as f64 / trails as f64).powf(0.15);
    let mut given = 0u64;
    let mut edit = Edit::default();
    for n in 0..trails {
        let upto = if n + 1 == trails { spare } else { share(n + 1) } as u64;
        let events = 1 + upto - given;
        given = upto;
        edit.uuid = Uuid::from_number(u128::from(random.next()) << 64 | u128::from(random.next()));
        let (user, ip) = if random.unit() < 0.25 {
            let octets = random.next().to_le_bytes().map(|octet| octet % 254 + 1);
            (String::new(), format!("{}.{}.{}.{}", octets[0], octets[1], octets[2], octets[3]))
        } else {
            (format!("{}_{}", capitalized(word(n)), n % 97), String::new())
        };
        edit.values[0] = user;
        edit.values[1] = ip;
        edit.time = TIME_FIRST + random.next() % (TIME_END - TIME_FIRST);
        let mut title = None;
        for _ in 0..events {
            if title.is_none() || random.unit() >= 0.4 {
                let next = titles.draw(&mut random);
                if title != Some(next) {
                    edit.values[2] = title_of(next);
                }
                title = Some(next);
            }
            event(&edit)?;
            let mean = if random.unit() < 0.7 { 600.0 } else { 20.0 * 86_400.0 };
            // A trail that reaches the end of the history goes on in its last second.
            let pause = -mean * (1.0 - random.unit()).ln();
            edit.time = (edit.time + pause as u64).min(TIME_END - 1);
        }
    }
    Ok(())
}

/// Adds the events of `spec` to `builder`, whose fields are [`FIELDS`]; `progress` hears of the
/// number of events now and then.
///
/// # Errors
/// What [`Builder::add`] returns.
pub fn fill(
    spec: &Spec,
    builder: &mut Builder,
    mut progress: impl FnMut(u64),
) -> Result<(), Error> {
    let mut count = 0u64;
    generate(spec, |edit| {
        count += 1;
        if count.is_multiple_of(65_536) {
            progress(count);
        }
        builder.add(edit.uuid, edit.time, &edit.values)
    })?;
    progress(count);
    Ok(())
}

/// SplitMix64: G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators",
/// OOPSLA 2014.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to below 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Draws k from 0 to n - 1 with probability about (k + 1)^-s, by inverting the integral.
struct PowerLaw {
    n: u64,
    exponent: f64,
    scale: f64,
}

impl PowerLaw {
    fn new(n: u64, s: f64) -> PowerLaw {
        let exponent = 1.0 - s;
        PowerLaw { n, exponent, scale: ((n + 1) as f64).powf(exponent) - 1.0 }
    }

    fn draw(&self, random: &mut Random) -> u64 {
        let x = (1.0 + random.unit() * self.scale).powf(1.0 / self.exponent);
        (x as u64).clamp(1, self.n) - 1
    }
}

const SYLLABLES: [&str; 32] = [
    "ba", "bel", "bur", "ca", "dan", "der", "do", "el", "fa", "gor", "hal", "in", "ka", "lan",
    "lo", "mar", "mi", "na", "nor", "o", "pel", "qui", "ra", "ros", "sa", "sen", "ti", "tor", "u",
    "val", "wen", "zu",
];

/// A word that can be spoken, different for each `n`.
fn word(mut n: u64) -> String {
    let mut word = String::new();
    loop {
        word.push_str(SYLLABLES[(n % 32) as usize]);
        n /= 32;
        if n == 0 {
            return word;
        }
        n -= 1;
    }
}

fn capitalized(mut word: String) -> String {
    if let Some(first) = word.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    word
}

fn title_of(n: u64) -> String {
    format!("{}_{}", capitalized(word(n)), word(n.wrapping_mul(7) + 3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(spec: &Spec) -> Vec<Edit> {
        let mut edits = Vec::new();
        generate(spec, |edit| {
            edits.push(edit.clone());
            Ok::<_, std::convert::Infallible>(())
        })
        .unwrap();
        edits
    }

    #[test]
    fn equal_specifications_give_equal_events_of_the_promised_number() {
        let spec = Spec { events: 5000, trails: 400, titles: 1000, seed: 7 };
        let edits = all(&spec);
        assert_eq!(edits.len(), 5000);
        assert_eq!(edits, all(&spec));
        assert_ne!(edits, all(&Spec { seed: 8, ..spec }));
        let trails: std::collections::HashSet<_> = edits.iter().map(|edit| edit.uuid).collect();
        assert_eq!(trails.len(), 400);
        assert!(edits.iter().all(|edit| (TIME_FIRST..TIME_END).contains(&edit.time)));
        let named = edits.iter().filter(|edit| !edit.values[0].is_empty()).count();
        assert!(edits.iter().all(|edit| edit.values[0].is_empty() != edit.values[1].is_empty()));
        assert!((2500..4900).contains(&named), "about three quarters of the editors have a name");
    }

    #[test]
    fn words_differ() {
        let words: std::collections::HashSet<_> = (0..100_000).map(title_of).collect();
        assert_eq!(words.len(), 100_000);
    }
}
