//! CNI plugins that misbehave: each a clear error, the sandbox undone.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::{fs, os::unix::fs::PermissionsExt, time::Instant};

use berth_tests::{Machine, pod};

#[tokio::test]
async fn plugins_that_misbehave_are_told_apart_and_undone() {
    let machine = Machine::new();
    for directory in ["bin", "net.d"] {
        fs::create_dir(machine.path(directory)).unwrap();
    }
    let paths = ["net.d", "bin", "certs.d"].map(|name| machine.path(name).display().to_string());
    let config = format!(
        "[cni]\nconf_dir = {:?}\nbin_dirs = [{:?}]\n[registry]\nconfig_path = {:?}\n",
        paths[0], paths[1], paths[2]
    );
    fs::write(machine.path("config.toml"), config).unwrap();
    let conf = r#"{ "cniVersion": "1.0.0", "name": "bad", "plugins": [{ "type": "bad" }] }"#;
    fs::write(machine.path("net.d/10-bad.conflist"), conf).unwrap();
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
        let plugin = machine.path("bin/bad");
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
