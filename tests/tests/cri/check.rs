//! `berthd check`: what it says of this machine, of registries and of conf lists, and that it leaves
//! nothing.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    time::{Duration, Instant},
};

use berth_tests::{Machine, binary};
use serde_json::Value;

/// What is said of one subject.
fn find<'a>(report: &'a Value, subject: &str) -> Vec<&'a Value> {
    let findings = report["findings"].as_array().unwrap();
    findings.iter().filter(|finding| finding["subject"] == subject).collect()
}

fn verdict(report: &Value, subject: &str) -> String {
    let found = find(report, subject);
    assert_eq!(found.len(), 1, "{subject}: {report}");
    found[0]["verdict"].as_str().unwrap().to_owned()
}

/// Runs it on the machine with this configuration: the exit code, and the document.
fn check(machine: &Machine, config: &str) -> (i32, Value) {
    let path = machine.path("config.toml");
    let own = |name: &str| machine.path(name).display().to_string();
    fs::create_dir_all(machine.path("net.d")).unwrap();
    let text = format!(
        "root = {:?}\nlisten = {:?}\n[cni]\nconf_dir = {:?}\nbin_dirs = [{:?}]\n[registry]\n\
         config_path = {:?}\n{config}",
        own("root"),
        own("berth.sock"),
        own("net.d"),
        own("cni-bin"),
        own("certs.d")
    );
    fs::write(&path, text).unwrap();
    let mut command = machine.command(binary("berthd"));
    let output = command.args(["check", "--json", "--config"]).arg(path).output().unwrap();
    let document = serde_json::from_slice(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    let document = document.unwrap_or_else(|failed| panic!("{failed}: {error}"));
    (output.status.code().unwrap(), document)
}

#[test]
fn a_machine_that_runs_these_tests_has_what_pods_need() {
    let machine = Machine::new();
    // Whose kernel has no NAT runs pods with a conf list of its own.
    machine.write_plugin("mine", "exit 0");
    machine.write_network(&serde_json::json!({
        "cniVersion": "1.1.0", "name": "mine", "plugins": [{ "type": "mine" }]
    }));
    let (code, report) = check(&machine, "");
    assert_eq!(code, 0, "{report:#}");
    for subject in ["kernel", "programs", "overlay", "inodes", "seccomp", "pod network"] {
        assert_eq!(verdict(&report, subject), "ok", "{report:#}");
    }
    let is_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    assert_eq!(verdict(&report, "cgroups"), if is_v2 { "ok" } else { "warning" }, "{report:#}");
    let told = find(&report, "cgroups")[0]["found"].as_str().unwrap();
    assert_eq!(told.starts_with("v2: "), is_v2, "{told}");
    // The root is not there yet, and neither it nor anything else is made.
    let mut left: Vec<_> = fs::read_dir(machine.dir.path()).unwrap().flatten().collect();
    left.retain(|entry| {
        !["config.toml", "net.d", "cni-bin"].iter().any(|it| *entry.file_name() == **it)
    });
    assert!(left.is_empty(), "{left:?}");
    for finding in report["findings"].as_array().unwrap() {
        let needs = finding["verdict"] != "ok";
        assert_eq!(finding["remedy"].is_string(), needs, "{finding}");
    }
}

#[test]
fn what_keeps_pods_from_running_is_missing_and_fails() {
    let machine = Machine::new();
    fs::create_dir_all(machine.path("net.d")).unwrap();
    let list = r#"{"name": "x", "plugins": [{"type": "absent", "ipam": {"type": "absent-too"}}]}"#;
    fs::write(machine.path("net.d/10-containerd-net.conflist"), list).unwrap();
    let (code, report) = check(&machine, "");
    assert_eq!(code, 1, "{report:#}");
    assert_eq!(verdict(&report, "pod network"), "missing");
    let finding = find(&report, "pod network")[0];
    assert!(finding["found"].as_str().unwrap().ends_with("needs absent absent-too"), "{finding}");
    // Told in the table as well, and its exit code is the same.
    let mut command = machine.command(binary("berthd"));
    let output = command.arg("check").arg("--config").arg(machine.path("config.toml"));
    let output = output.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        !output.status.success() && text.contains("> install absent absent-too into "),
        "{text}"
    );
    // With its plugins it is another runtime's, and works.
    for plugin in ["absent", "absent-too"] {
        machine.write_plugin(plugin, "exit 0");
    }
    let (code, report) = check(&machine, "");
    assert_eq!((code, verdict(&report, "pod network").as_str()), (0, "warning"), "{report:#}");
}

#[test]
fn registries_are_asked_for_a_bounded_time() {
    let machine = Machine::new();
    // The kernel accepts connections to it, and nobody answers.
    let hangs = machine.in_network(|| {
        std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        TcpListener::bind("127.0.0.1:0").unwrap()
    });
    let silent = hangs.local_addr().unwrap();
    let certs = machine.path("certs.d");
    for (host, text) in [
        ("silent.test", format!("server = \"http://{silent}\"\n")),
        ("nobody.test", "server = \"http://127.0.0.1:1\"\n".to_owned()),
        ("damaged.test", "server = 1\n".to_owned()),
        ("_default", "server = \"http://127.0.0.1:1\"\n".to_owned()),
    ] {
        fs::create_dir_all(certs.join(host)).unwrap();
        fs::write(certs.join(host).join("hosts.toml"), text).unwrap();
    }
    let begun = Instant::now();
    let (_, report) = check(&machine, "");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let found = find(&report, "registry");
    let told: Vec<&str> = found.iter().map(|finding| finding["found"].as_str().unwrap()).collect();
    assert_eq!(told.len(), 3, "{told:?}");
    for (told, expected) in
        told.iter().zip(["damaged.test: in ", "nobody.test: http", "silent.test: http"])
    {
        assert!(told.starts_with(expected), "{told}");
    }
    assert!(told[2].ends_with("no answer within 3 s"), "{told:?}");
    drop(hangs);
}

#[test]
fn a_version_names_its_commit_where_there_is_one() {
    let output = std::process::Command::new(binary("berthd")).arg("--version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let version = format!("berthd {}", env!("CARGO_PKG_VERSION"));
    assert!(text.starts_with(&version), "{text}");
    let about = text.trim_end()[version.len()..].trim();
    assert!(about.is_empty() || about.starts_with('(') && about.ends_with(')'), "{text}");
}
