//! The benchmark: that its runs are reports, and that nothing is left of one that is interrupted.
//! What it measures is nobody's business here.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use berth_tests::{eventually, processes};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// A run without a peer, whose files are in `directory`.
fn bench(directory: &Path, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_bench"))
        .arg("--alone")
        .args(arguments)
        .env("TMPDIR", directory)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The cgroups of this name, which has no suffix or one of systemd's.
fn cgroups(machine: &str) -> Vec<String> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = names(root).into_iter().map(|name| root.join(name));
    let machine = machine.replace('-', "");
    let wanted = |name: &String| name.replace('-', "").starts_with(&machine);
    hierarchies.chain([root.to_owned()]).flat_map(|path| names(&path)).filter(wanted).collect()
}

#[tokio::test]
async fn a_run_of_the_bench_is_a_report_with_plots() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("report.json");
    let parts = ["--only", "latency,exec,density,restart", "--rounds=2", "--at-once=2", "--pods=2"];
    let files = ["--json", json.to_str().unwrap(), "--plots", directory.path().to_str().unwrap()];
    let status = bench(directory.path(), &[parts.as_slice(), &files].concat()).wait().unwrap();
    assert!(status.success());

    let report: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    let rows = report["rows"].as_array().unwrap();
    for (part, name, count) in [
        ("latency", "StartContainer, with all", 2),
        ("exec", "ExecSync", 8),
        ("density", "daemon's memory", 1),
        ("restart", "kill -9 to a full list", 3),
    ] {
        let row = rows.iter().find(|row| row["part"] == part && row["name"] == name).unwrap();
        assert_eq!(row["at"], 2);
        assert_eq!(row["of"]["berth"]["count"], count, "{row}");
        assert!(row["of"]["berth"]["p50"].as_f64().unwrap() > 0.0, "{row}");
    }
    for plot in ["latency.svg", "density.svg"] {
        let text = fs::read_to_string(directory.path().join(plot)).unwrap();
        assert!(text.starts_with("<svg") && text.ends_with("</svg>\n"), "{text}");
    }
    let left = names(directory.path()).into_iter().filter(|name| name.starts_with("berth-"));
    assert_eq!(left.collect::<Vec<_>>(), Vec::<String>::new());
}

#[tokio::test]
async fn nothing_is_left_of_an_interrupted_bench() {
    let directory = tempfile::tempdir().unwrap();
    let marker = directory.path().to_str().unwrap();
    let mut bench = bench(directory.path(), &["--only", "density", "--pods", "500"]);
    eventually("pods", async || processes(marker, "berth-shim").len() > 2).await;
    let scratch = directory.path().join(&names(directory.path())[0]);
    let machine = names(&scratch).into_iter().find(|name| name.starts_with("berth-test-"));
    let machine = machine.unwrap();
    // The first shims make namespaces, and come before any container.
    eventually("a container", async || !cgroups(&machine).is_empty()).await;

    kill(Pid::from_raw(bench.id() as i32), Signal::SIGTERM).unwrap();
    assert!(!bench.wait().unwrap().success());
    assert_eq!(processes(marker, ""), Vec::<u32>::new());
    assert_eq!(cgroups(&machine), Vec::<String>::new());
    assert_eq!(names(directory.path()), Vec::<String>::new());
}
