//! What confines a container, and what it may be given: capabilities, seccomp, paths, devices.

use std::fs;

use berth_tests::{Capability, skip_without};

use crate::{fail, ready, run};

/// The bits of the 14 capabilities that a container has by default.
const DEFAULT: &str = "00000000a80425fb";
const EFFECTIVE: &str = "grep CapEff /proc/self/status";

#[tokio::test]
async fn capabilities_are_added_and_dropped() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, image) = ready().await;
    for (options, expected) in [
        (&[][..], DEFAULT),
        (&["--cap-drop=ALL"], "0000000000000000"),
        (&["--cap-drop=ALL", "--cap-add=CHOWN", "--cap-add=CAP_KILL"], "0000000000000021"),
        (&["--cap-add=SYS_ADMIN", "--cap-drop=mknod"], "00000000a02425fb"),
        (&["--cap-add=CHOWN", "--cap-drop=CHOWN"], DEFAULT),
        // Of a user who is not root, by execve(2).
        (&["--user=1000", "--cap-add=SYS_ADMIN"], "0000000000000000"),
    ] {
        let shown = run(&machine, options, &image, EFFECTIVE);
        assert_eq!(shown, format!("CapEff:\t{expected}"), "{options:?}");
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn seccomp_profiles_come_with_the_request() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, image) = ready().await;
    let profile = machine.path("profile.json");
    // As Docker writes its own: with a rule that depends on a capability.
    fs::write(
        &profile,
        r#"{ "defaultAction": "SCMP_ACT_ALLOW", "archMap": [
            { "architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"] },
            { "architecture": "SCMP_ARCH_AARCH64", "subArchitectures": [] } ],
          "syscalls": [
            { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28,
              "excludes": { "caps": ["CAP_SYS_ADMIN"] } } ] }"#,
    )
    .unwrap();
    let option = format!("--security-opt=seccomp={}", profile.display());
    let script = "grep -w Seccomp /proc/self/status; mkdir /x 2>&1; true";
    let shown = run(&machine, &[&option], &image, script);
    assert!(shown.starts_with("Seccomp:\t2\n") && shown.contains("No space left"), "{shown}");
    for options in [&[&option, "--cap-add=SYS_ADMIN"][..], &["--privileged", &option]] {
        assert_eq!(run(&machine, options, &image, script), "Seccomp:\t2", "{options:?}");
    }
    for (option, expected) in [
        ("--security-opt=seccomp=unconfined", "Seccomp:\t0"),
        ("--security-opt=seccomp=builtin", "Seccomp:\t2"),
        ("--privileged", "Seccomp:\t0"),
    ] {
        let shown = run(&machine, &[option], &image, "grep -w Seccomp /proc/self/status");
        assert_eq!(shown, expected, "{option}");
    }
    fs::write(&profile, r#"{ "defaultAction": "SCMP_ACT_NOPE" }"#).unwrap();
    let error = fail(&machine, &["run", "--rm", &option, &image, "true"]);
    assert!(error.contains("SCMP_ACT_NOPE"), "{error}");
    machine.assert_clean().await;
}

#[tokio::test]
async fn new_privileges_and_labels() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, image) = ready().await;
    for (option, expected) in [
        ("--security-opt=no-new-privileges", "1"),
        ("--security-opt=no-new-privileges=false", "0"),
        // Where there is no SELinux and no AppArmor, nothing is to be switched off.
        ("--security-opt=label=disable", "0"),
        ("--security-opt=apparmor=unconfined", "0"),
    ] {
        let shown = run(&machine, &[option], &image, "grep NoNewPrivs /proc/self/status");
        assert_eq!(shown, format!("NoNewPrivs:\t{expected}"), "{option}");
    }
    let error = fail(&machine, &["run", "--rm", "--security-opt=label=x", &image, "true"]);
    assert!(error.contains("Bad label option"), "{error}");
    let error = fail(&machine, &["create", "--security-opt=nope=1", &image]);
    assert!(error.contains("invalid --security-opt 2: \"nope=1\""), "{error}");
    machine.assert_clean().await;
}

#[tokio::test]
async fn paths_of_the_kernel_are_hidden_and_read_only_unless_asked_for() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, image) = ready().await;
    let script = "grep -c ' /proc/interrupts ' /proc/mounts; grep -c ' /proc/sys ' /proc/mounts
        grep ' /sys ' /proc/mounts";
    let of = |options: &[&str]| {
        let shown = run(&machine, options, &image, script);
        let mut lines = shown.lines().map(str::to_owned);
        let counts = [lines.next().unwrap(), lines.next().unwrap()];
        let sys = lines.next().unwrap().contains(" ro,");
        (counts, sys)
    };
    let counts = |first: &str, second: &str| [first.to_owned(), second.to_owned()];
    assert_eq!(of(&[]), (counts("1", "1"), true));
    assert_eq!(of(&["--security-opt=systempaths=unconfined"]), (counts("0", "0"), true));
    assert_eq!(of(&["--privileged"]), (counts("0", "0"), false));
    machine.assert_clean().await;
}

#[tokio::test]
async fn devices_are_given_one_by_one_by_rule_or_all() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, image) = ready().await;
    // Two nodes of the zero device, so that a directory has something to give.
    let directory = machine.path("nodes");
    fs::create_dir(&directory).unwrap();
    for name in ["one", "two"] {
        let path = directory.join(name);
        machine.output("mknod", &[path.to_str().unwrap(), "c", "1", "5"]);
    }
    let devices = format!("--device={}:/dev/given", directory.display());
    let options = ["--device=/dev/zero:/dev/mine:r", &devices];
    let script = "ls /dev/given; head -c 1 /dev/mine | wc -c; stat -c %t:%T /dev/given/two";
    assert_eq!(run(&machine, &options, &image, script), "one\ntwo\n1\n1:5");
    // The kernel's log: a device that no container has by default.
    let script = "mknod /k c 1 11 && head -c 0 < /k && echo opened; true";
    let syslog = "--cap-add=SYSLOG";
    assert_eq!(run(&machine, &[syslog], &image, script), "");
    let rule = "--device-cgroup-rule=c 1:* rm";
    assert_eq!(run(&machine, &[syslog, rule], &image, script), "opened");
    assert_eq!(run(&machine, &["--privileged"], &image, script), "opened");
    let shown = run(&machine, &["--privileged"], &image, "ls /dev");
    assert!(shown.lines().any(|name| name == "kmsg" || name == "mem"), "{shown}");
    let error = fail(&machine, &["create", "--device-cgroup-rule=nope", &image]);
    assert!(error.contains("device cgroup"), "{error}");
    machine.assert_clean().await;
}

#[tokio::test]
async fn the_privileged_have_everything() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, image) = ready().await;
    let all = fs::read_to_string("/proc/self/status").unwrap();
    let bounding = all.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
    let script = format!("{EFFECTIVE}; mkdir /m && mount -t tmpfs x /m && echo mounted");
    let shown = run(&machine, &["--privileged"], &image, &script);
    assert_eq!(shown, format!("CapEff:\t{bounding}\nmounted"));
    machine.assert_clean().await;
}
