//! `bench`: its tables, charts and figures.

use std::fs;

use serde_json::Value;

use crate::{run, s3db};

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
    // Three logs at five levels, and a busy process of each.
    assert_eq!(costs.len(), 3 * 5 + 3);
    for cost in costs.iter().filter(|cost| cost["level"] == "atomic") {
        // Whatever is better than this is fine. Each commit of a lone client of s3-log is a put, half of that.
        let is_lone = cost["backend"] == "s3-log" && cost["busy"] == false;
        let most = if is_lone { 0.0104 } else { 0.0103 };
        assert!(number(&cost["dollars"]) <= most, "{cost}");
        // Nobody is cheap by more records per checkpoint, or larger groups, than the aim is for.
        assert!((7.0..=10.1).contains(&number(&cost["records_per_checkpoint"])), "{cost}");
        let group = &cost["transactions_per_group"];
        assert_eq!(group.is_null(), cost["backend"] != "s3-log", "{cost}");
        assert!(group.as_f64().is_none_or(|group| (1.0..=10.0).contains(&group)), "{cost}");
    }
    let isolated = costs.iter().filter(|cost| cost["level"] == "serializable");
    let dollars: Vec<f64> = isolated.map(|cost| number(&cost["dollars"])).collect();
    assert!(dollars.len() == 3 && dollars.iter().all(|it| *it > 0.005), "a swap each: {dollars:?}");
    let goals = rows("goals");
    for goal in &goals {
        let is_met = number(&goal["measured"]) <= number(&goal["at_most"]);
        assert_eq!(goal["met"], is_met, "{goal}");
        // All but the lone client's, which is as near to its aim as what it cannot save.
        let is_lone = goal["what"].as_str().unwrap().contains("s3-log, b =");
        assert!(is_met || is_lone, "{goal}");
    }
    assert_eq!(goals.len(), 2 + 6 + 4, "{goals:?}");
    let sequenced = rows("sequencer");
    // With conflicts and without, in one process and in many, 1, 10 and 100 writers.
    assert_eq!(sequenced.len(), 2 * 2 * 3);
    for row in &sequenced {
        assert!(number(&row["per_s"]) > 0.0, "{row}");
        assert!(row["in_conflict"] == true || number(&row["aborted"]) == 0.0, "{row}");
    }
    for stall in rows("stalls") {
        let ratio = number(&stall["p99_stalled_ms"]) / number(&stall["p99_ms"]);
        assert!(ratio <= 1.05, "{stall}");
    }
    for age in rows("freshness") {
        assert!(number(&age["p99_s"]) <= number(&found["freshness_bound_s"]), "{age}");
    }

    for name in ["figure-3.svg", "scaling.svg", "ceiling.svg"] {
        let svg = fs::read_to_string(charts.join(name)).unwrap();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{name}");
        assert!(svg.matches("<polyline").count() >= 4, "{name}");
    }
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("# Benchmarks\n\n<!-- paper -->\n## "), "{text}");
    assert!(text.ends_with("<!-- end paper -->\n\nafter\n") && !text.contains("old\n"), "{text}");
    assert!(text.contains("| Atomicity"), "{text}");
}

#[test]
fn a_machine_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let within = folder.path().join("disk");
    let file = folder.path().join("BENCHMARKS.md");
    fs::write(&file, "# Benchmarks\n\n<!-- embedded -->\nold\n<!-- end embedded -->\n\nafter\n")
        .unwrap();
    let (within_at, file_at) = (within.display().to_string(), file.display().to_string());
    let args =
        ["bench", "embedded", "--quick", "--json", "--clients", "3", "--transactions", "5,20"];
    let found: Value = serde_json::from_str(&run(&[
        &args[..],
        &["--directory", &within_at, "--seconds", "0.05", "--write", &file_at],
    ]
    .concat()))
    .unwrap();

    let number = |value: &Value| value.as_f64().unwrap();
    let rows = |name: &str| found[name].as_array().unwrap().clone();
    let commits = rows("commits");
    // In a directory and in memory, three logs, three levels, one client and three.
    assert_eq!(commits.len(), 2 * 3 * 3 * 2);
    for row in &commits {
        assert!(number(&row["transactions"]) >= number(&row["clients"]), "{row}");
        assert!(number(&row["per_s"]) >= number(&row["settled_per_s"]), "{row}");
        assert!(number(&row["settled_per_s"]) > 0.0, "{row}");
        assert!(number(&row["p99_ms"]) >= number(&row["median_ms"]), "{row}");
        let durability = if row["in"] == "directory" { "fsync" } else { "none" };
        assert_eq!(row["durability"], durability, "{row}");
    }
    let isolated = rows("isolated");
    assert_eq!(isolated.len(), 2 * 4);
    for row in &isolated {
        let writers = number(&row["writers"]);
        assert!(number(&row["transactions"]) >= writers && number(&row["per_s"]) > 0.0, "{row}");
        assert!(number(&row["p99_ms"]) >= number(&row["median_ms"]), "{row}");
        // Those that wait share a put.
        assert!(writers < 64.0 || number(&row["per_put"]) > 2.0, "{row}");
    }
    for row in rows("reads") {
        assert!(number(&row["median_us"]) > 0.0 && number(&row["reads"]) >= 1000.0, "{row}");
        // An aim for a quiet machine: here it may not be far from it.
        assert!(number(&row["median_us"]) < 20.0 * number(&row["aim_us"]), "{row}");
    }
    let recovery = rows("recovery");
    assert_eq!(recovery.len(), 3 * 2);
    for row in &recovery {
        assert!(number(&row["max_ms"]) >= number(&row["median_ms"]), "{row}");
    }
    let ages = rows("freshness");
    assert_eq!(ages.len(), 2 * 3 * 2);
    for row in &ages {
        assert!(number(&row["commits"]) >= 1.0, "{row}");
        assert!(number(&row["max_ms"]) <= number(&row["bound_ms"]), "{row}");
    }
    assert!(found["machine"].as_str().unwrap().contains("cores"), "{found}");
    assert!(!found["file_system"].as_str().unwrap().is_empty(), "{found}");
    // Nothing is left, and nothing else was touched.
    assert_eq!(fs::read_dir(&within).unwrap().count(), 0);
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("# Benchmarks\n\n<!-- embedded -->\n## "), "{text}");
    assert!(
        text.ends_with("<!-- end embedded -->\n\nafter\n") && !text.contains("old\n"),
        "{text}"
    );
    assert!(text.contains("by `s3db bench embedded --quick --seconds 0.05 --clients 3"), "{text}");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    for bad in [
        ["--seconds", "0"],
        ["--seconds", "NaN"],
        ["--clients", "1"],
        ["--clients", "65"],
        ["--transactions", "0"],
        ["--transactions", "5,200000"],
    ] {
        s3db().args(["bench", "embedded"]).args(bad).assert().code(2);
    }
    // A file is in the way: it is named.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let file = file.display().to_string();
    let output =
        s3db().args(["bench", "embedded", "--quick", "--directory", &file]).assert().code(1);
    let said = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
    assert!(said.contains(&file), "{said}");
}
