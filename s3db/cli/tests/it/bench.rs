//! `bench paper`: its tables, charts and figures.

use std::fs;

use serde_json::Value;

use crate::run;

#[test]
fn the_paper_is_replayed_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let charts = folder.path().join("charts");
    let file = folder.path().join("BENCHMARKS.md");
    fs::write(&file, "# Benchmarks\n\n<!-- paper -->\nold\n<!-- end paper -->\n\nafter\n").unwrap();
    let (charts_at, file_at) = (charts.display().to_string(), file.display().to_string());
    let args = ["bench", "paper", "--quick", "--json", "--plots", &charts_at, "--write", &file_at];
    let found: Value = serde_json::from_str(&run(&args)).unwrap();

    let number = |value: &Value| value.as_f64().unwrap();
    let rows = |name: &str| found[name].as_array().unwrap().clone();
    for (measured, printed) in rows("measured").iter().zip(rows("printed")) {
        assert_eq!(measured["variant"], printed["variant"]);
        for (figure, within) in [("average_s", 0.06), ("transaction_dollars", 0.10)] {
            let off = number(&measured[figure]) / number(&printed[figure]) - 1.0;
            assert!(off.abs() < within, "{figure}: {measured} for {printed}");
        }
    }
    let costs = rows("today");
    // Two logs at three levels, and one busy process.
    assert_eq!(costs.len(), 2 * 3 + 1);
    let atomic =
        costs.iter().find(|cost| cost["backend"] == "sqs-standard" && cost["level"] == "atomic");
    let atomic = atomic.unwrap();
    assert!(number(&atomic["dollars"]) <= 0.0103, "{atomic}");
    for stall in rows("stalls") {
        let ratio = number(&stall["p99_stalled_ms"]) / number(&stall["p99_ms"]);
        assert!(ratio <= 1.05, "{stall}");
    }
    for age in rows("freshness") {
        assert!(number(&age["p99_s"]) <= number(&found["freshness_bound_s"]), "{age}");
    }

    for name in ["figure-3.svg", "scaling.svg"] {
        let svg = fs::read_to_string(charts.join(name)).unwrap();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{name}");
        assert!(svg.matches("<polyline").count() >= 4, "{name}");
    }
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("# Benchmarks\n\n<!-- paper -->\n## "), "{text}");
    assert!(text.ends_with("<!-- end paper -->\n\nafter\n") && !text.contains("old\n"), "{text}");
    assert!(text.contains("| Atomicity"), "{text}");
}
