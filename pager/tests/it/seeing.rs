//! What the pager says about itself, and that what is written about it is true.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::Path,
    sync::{Arc, Mutex},
};

use pager::{Error, Hint, Mechanism, Mode, Pager, SourceError};
use tracing::{field, span};

use crate::support::{
    Behaviour, Known, alone, builder, byte_at, can_fault, copying, passed, probe, until,
};

/// Names and kinds of the table in the README.
fn table() -> BTreeMap<String, String> {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"));
    let readme = readme.unwrap();
    let rows = readme.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        assert_eq!(cells.len(), 6, "name, kind, unit and meaning: {row}");
        assert!(cells.iter().skip(1).take(4).all(|cell| !cell.is_empty()), "{row}");
        (cells[1].to_owned(), cells[2].to_owned())
    })
    .collect()
}

/// Every `counter!("name"`, `gauge!` and `histogram!` below `folder`.
fn in_code(folder: &Path, found: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            in_code(&path, found);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for kind in ["counter", "gauge", "histogram"] {
            for (at, _) in text.match_indices(&format!("{kind}!(")) {
                let call = text[at..].split_once('(').unwrap().1.trim_start();
                let name = call.strip_prefix('"').and_then(|rest| rest.split_once('"'));
                let (name, _) = name.unwrap_or_else(|| panic!("{}: no name", path.display()));
                found.insert(name.to_owned(), kind.to_owned());
            }
        }
    }
}

#[test]
fn the_table_of_metrics_and_the_code_agree() {
    let mut code = BTreeMap::new();
    in_code(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut code);
    assert!(code.len() > 10, "{code:?}");
    assert_eq!(table(), code);
}

/// Remembers which metrics were asked for, and what histograms were given.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Recorded>>);

#[derive(Default)]
struct Recorded {
    kinds: BTreeMap<String, String>,
    recorded: BTreeSet<String>,
}

struct Values(Recorder, String);

impl Recorder {
    fn saw(&self, key: &metrics::Key, kind: &str) -> Arc<Values> {
        let name = key.name().to_owned();
        self.0.lock().unwrap().kinds.insert(name.clone(), kind.to_owned());
        Arc::new(Values(self.clone(), name))
    }
}

impl Values {
    fn took(&self) {
        self.0.0.lock().unwrap().recorded.insert(self.1.clone());
    }
}

impl metrics::CounterFn for Values {
    fn increment(&self, _: u64) {
        self.took();
    }
    fn absolute(&self, _: u64) {}
}

impl metrics::HistogramFn for Values {
    fn record(&self, value: f64) {
        assert!((0.0..60e6).contains(&value), "{}: {value} us", self.1);
        self.took();
    }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(
        &self,
        _: metrics::KeyName,
        _: Option<metrics::Unit>,
        _: metrics::SharedString,
    ) {
    }
    fn describe_gauge(
        &self,
        _: metrics::KeyName,
        _: Option<metrics::Unit>,
        _: metrics::SharedString,
    ) {
    }
    fn describe_histogram(
        &self,
        _: metrics::KeyName,
        _: Option<metrics::Unit>,
        _: metrics::SharedString,
    ) {
    }
    fn register_counter(&self, key: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Counter {
        metrics::Counter::from_arc(self.saw(key, "counter"))
    }
    fn register_gauge(&self, key: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Gauge {
        panic!("{key}: the pager has no gauges");
    }
    fn register_histogram(
        &self,
        key: &metrics::Key,
        _: &metrics::Metadata<'_>,
    ) -> metrics::Histogram {
        metrics::Histogram::from_arc(self.saw(key, "histogram"))
    }
}

/// Loads, faults, guesses right and wrong, evictions, failures.
fn work(pager: &Pager) {
    let source = Known::new(64 << 20);
    let region = pager.open(source.clone()).unwrap();
    region.advise(Hint::WillNeed(&[40 << 20..41 << 20, 50 << 20..51 << 20])).unwrap();
    until("guessed", || region.stats().prefetched > 0 && region.stats().units_resident > 0);
    let mapped = can_fault().then(|| region.map().unwrap());
    for at in (0..12 << 20).step_by(65_536) {
        match &mapped {
            Some(mapped) if at % 131_072 == 0 => assert_eq!(mapped[at as usize], byte_at(at)),
            _ => assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at)),
        }
    }
    assert!(region.stats().units_evicted > 0);
    let gone = SourceError::NotFound { object: "test://known".to_owned(), cause: None };
    source.behave(Behaviour::Fail(gone));
    assert!(matches!(region.load(60 << 20..(60 << 20) + 1), Err(Error::Source(_))));
}

#[test]
fn metrics_are_those_of_the_table() {
    const TEST: &str = "seeing::metrics_are_those_of_the_table";
    if !alone(TEST, passed) {
        return;
    }
    let recorder = Recorder::default();
    assert!(metrics::set_global_recorder(recorder.clone()).is_ok());
    work(&builder().budget_bytes(4 << 20).page_tables_stay(true).build().unwrap());
    let seen = recorder.0.lock().unwrap();
    let table = table();
    for (name, kind) in &seen.kinds {
        assert_eq!(table.get(name), Some(kind), "{name}");
    }
    for name in ["load.count", "load.wait_us", "fetch.requests", "fetch.bytes", "fetch.errors"] {
        assert!(seen.recorded.contains(&format!("pager.{name}")), "{name}");
    }
    for name in ["fetch.first_unit_us", "fetch.us", "evict.units", "prefetch.units"] {
        assert!(seen.recorded.contains(&format!("pager.{name}")), "{name}");
    }
    assert_eq!(seen.recorded.contains("pager.fault.count"), can_fault());
}

/// Writes down what it hears, under one lock, as a subscriber that writes to stderr does.
#[derive(Clone, Default)]
struct Listener(Arc<Mutex<Heard>>);

#[derive(Default)]
struct Heard {
    spans: Vec<String>,
    closed: BTreeSet<u64>,
    events: Vec<String>,
}

struct Text<'a>(&'a mut String);

impl field::Visit for Text<'_> {
    fn record_debug(&mut self, field: &field::Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}

impl tracing::Subscriber for Listener {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "pager"
    }
    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        let mut heard = self.0.lock().unwrap();
        let mut text = format!("{} {}", span.metadata().level(), span.metadata().name());
        span.record(&mut Text(&mut text));
        heard.spans.push(text);
        span::Id::from_u64(heard.spans.len() as u64)
    }
    fn record(&self, id: &span::Id, values: &span::Record<'_>) {
        let mut heard = self.0.lock().unwrap();
        values.record(&mut Text(&mut heard.spans[id.into_u64() as usize - 1]));
    }
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = format!("{}", event.metadata().level());
        event.record(&mut Text(&mut text));
        assert_eq!(std::thread::current().name(), Some("pager-log"));
        self.0.lock().unwrap().events.push(text);
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
    fn try_close(&self, id: span::Id) -> bool {
        self.0.lock().unwrap().closed.insert(id.into_u64())
    }
}

/// With everything on, reads go on though the reader holds the lock that telling needs, and it is told
/// afterwards what was done.
#[test]
fn requests_installs_and_evictions_are_told() {
    const TEST: &str = "seeing::requests_installs_and_evictions_are_told";
    if !alone(TEST, passed) {
        return;
    }
    let listener = Listener::default();
    tracing::subscriber::set_global_default(listener.clone()).unwrap();
    let pager = builder().budget_bytes(4 << 20).build().unwrap();
    let heard = listener.0.lock().unwrap();
    work(&pager);
    drop(heard);
    let until_heard = |what: &str, told: &dyn Fn(&Heard) -> bool| {
        until(what, || told(&listener.0.lock().unwrap()));
    };
    let opened =
        "DEBUG message=opened object=\"test://known\" bytes=67108864 unit=65536 mechanism=";
    let mechanism = match probe().mode {
        Mode::CheckedOnly => Mechanism::Plain,
        _ => copying(),
    };
    let opened = format!("{opened}{mechanism:?}");
    assert_eq!(pager.regions().len(), 0, "it is closed by now");
    until_heard(&opened, &|heard| heard.events.contains(&opened));
    for level_and_name in ["TRACE message=installed units=", "TRACE message=evicted units="] {
        until_heard(level_and_name, &|heard| {
            heard.events.iter().any(|event| event.starts_with(level_and_name))
        });
    }
    let start = "DEBUG fetch object=\"test://known\" from=";
    let fields = [" bytes=65536 ", " requests=1", " units=1", " took_us="];
    until_heard("a request of one unit that succeeds", &|heard| {
        heard
            .spans
            .iter()
            .any(|span| span.starts_with(start) && fields.iter().all(|field| span.contains(field)))
    });
    for field in ["guess=true", "guess=false", "error=\"not_found\""] {
        until_heard(field, &|heard| heard.spans.iter().any(|span| span.contains(field)));
    }
    until_heard("every request has ended", &|heard| heard.closed.len() == heard.spans.len());
}
