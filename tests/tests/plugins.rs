//! CNI plugins that misbehave: each a clear error, the sandbox undone.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use berth_tests::{Machine, pod};

/// A machine whose network is one plugin, and where that is to be.
fn with_plugin(name: &str) -> (Machine, PathBuf) {
    let machine = Machine::new();
    for directory in ["bin", "net.d"] {
        fs::create_dir(machine.path(directory)).unwrap();
    }
    let [net, bin] = ["net.d", "bin"].map(|name| machine.path(name).display().to_string());
    fs::write(machine.path("config.toml"), format!("[cni]\nconf_dir = {net:?}\nbin_dirs = [{bin:?}]\n")).unwrap();
    let conf = format!(r#"{{ "cniVersion": "1.0.0", "name": "test", "plugins": [{{ "type": "{name}" }}] }}"#);
    fs::write(machine.path("net.d/10-test.conflist"), conf).unwrap();
    let plugin = machine.path("bin").join(name);
    (machine, plugin)
}

#[tokio::test]
async fn plugins_that_misbehave_are_told_apart_and_undone() {
    let (machine, plugin) = with_plugin("bad");
    let daemon = machine.start().await;
    let cri = daemon.cri();
    for (script, what) in [
        ("kill -9 $$", "signal: 9"),
        ("echo hello", "result of plugin bad"),
        ("echo broken >&2; exit 3", "broken"),
        (r#"echo '{"cniVersion":"1.0.0","code":7,"msg":"no leases","details":"try later"}'; exit 1"#, "no leases"),
        (r#"echo '{"cniVersion":"1.0.0","code":7,"msg":"no leases"}'; exit 0"#, "no leases"),
        ("exec yes", "more than 1 MiB"),
        ("yes >&2", "more than 1 MiB"),
        ("echo '{}'", "no address"),
    ] {
        // DEL answers, so that only ADD is at fault.
        fs::write(&plugin, format!("#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\n{script}\n")).unwrap();
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
        let begun = Instant::now();
        let refused = cri.run_pod(pod(&machine, "p")).await.unwrap_err();
        assert!(refused.message().contains(what), "{script}: {refused}");
        assert!(begun.elapsed().as_secs() < 20, "{script}");
        machine.assert_clean().await;
    }
}

#[tokio::test]
async fn a_plugin_that_is_being_installed_is_waited_for() {
    let (machine, plugin) = with_plugin("late");
    // A program that is open for writing cannot be executed.
    fs::copy("/bin/true", &plugin).unwrap();
    let writer = fs::File::options().write(true).open(&plugin).unwrap();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let run = cri.run_pod(pod(&machine, "p"));
    let finish = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        drop(writer);
    };
    let (refused, ()) = tokio::join!(run, finish);
    // It ran: /bin/true says nothing.
    assert!(refused.unwrap_err().message().contains("result of plugin late"));
    machine.assert_clean().await;
}
