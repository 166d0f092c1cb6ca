//! AppArmor, where the kernel has it: in the machine of `hack/vm`.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use berth_proto::v1;
use berth_tests::{container, pod, ready};
use tonic::Code;

fn enabled() -> bool {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'));
    if !enabled {
        eprintln!("skipped: this kernel has no AppArmor");
    }
    enabled
}

fn with_profile(
    mut config: v1::ContainerConfig,
    kind: v1::security_profile::ProfileType,
    name: &str,
) -> v1::ContainerConfig {
    let profile = v1::SecurityProfile { profile_type: kind.into(), localhost_ref: name.to_owned() };
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().apparmor = Some(profile);
    config
}

#[tokio::test]
async fn containers_run_under_the_profile_they_ask_for_and_can_be_stopped() {
    use v1::security_profile::ProfileType;
    if !enabled() {
        return;
    }
    let mut parser = Command::new("apparmor_parser").arg("--replace").stdin(Stdio::piped()).spawn().unwrap();
    let text = "profile berth-test-denies flags=(attach_disconnected) {\n file,\n capability,\n network,\n signal,\n deny /tmp/** w,\n}\n";
    parser.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(parser.wait().unwrap().success());

    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let script = "trap 'exit 7' TERM; while :; do sleep 0.01; done";
    let plain = |name: &str| container(name, &image, script);
    let current = async |id: &str| {
        let of_exec = cri.sh(id, "cat /proc/self/attr/current").await;
        assert_eq!(cri.sh(id, "cat /proc/1/attr/current").await, of_exec);
        of_exec.trim().to_owned()
    };
    for (config, profile) in [
        (plain("nothing-said"), "berth-default (enforce)"),
        (with_profile(plain("default"), ProfileType::RuntimeDefault, ""), "berth-default (enforce)"),
        (with_profile(plain("unconfined"), ProfileType::Unconfined, ""), "unconfined"),
        (with_profile(plain("local"), ProfileType::Localhost, "berth-test-denies"), "berth-test-denies (enforce)"),
    ] {
        let id = cri.run(&sandbox, config).await.unwrap();
        assert_eq!(current(&id).await, profile);
        let denied = cri.exec(&id, &["touch", "/tmp/x"], 5).await.unwrap();
        assert_eq!(denied.exit_code != 0, profile.contains("denies"), "{profile}: {denied:?}");
        cri.stop(&id, 20).await.unwrap();
        assert_eq!(cri.status(&id).await.unwrap().exit_code, 7, "{profile}: its signal reached it");
    }
    let missing = with_profile(plain("missing"), ProfileType::Localhost, "localhost/no-such-profile");
    let refused = cri.create(&sandbox, missing).await.unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("no-such-profile"), "{refused}");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
