//! AppArmor profiles. The kernel of `hack/vm` has AppArmor.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use berth_proto::v1;
use berth_tests::{Config, Entry, Image, Layer, container, gzip, pod, ready, socket_program};
use serde_json::json;
use tonic::Code;

fn with_profile(
    mut config: v1::ContainerConfig,
    kind: v1::security_profile::ProfileType,
    name: &str,
) -> v1::ContainerConfig {
    let profile = v1::SecurityProfile { profile_type: kind.into(), localhost_ref: name.to_owned() };
    config.security().apparmor = Some(profile);
    config
}

#[tokio::test]
#[ignore = "needs a kernel with AppArmor: hack/test runs it in hack/vm"]
async fn containers_run_under_the_profile_they_ask_for_and_can_be_stopped() {
    use v1::security_profile::ProfileType;
    let mut parser =
        Command::new("apparmor_parser").arg("--replace").stdin(Stdio::piped()).spawn().unwrap();
    let text = "profile berth-test-denies flags=(attach_disconnected) {\n file,\n capability,\n \
        network,\n signal,\n deny /tmp/** w,\n}\n";
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
        (
            with_profile(plain("default"), ProfileType::RuntimeDefault, ""),
            "berth-default (enforce)",
        ),
        (with_profile(plain("unconfined"), ProfileType::Unconfined, ""), "unconfined"),
        (
            with_profile(plain("local"), ProfileType::Localhost, "berth-test-denies"),
            "berth-test-denies (enforce)",
        ),
    ] {
        let id = cri.run(&sandbox, config).await.unwrap();
        assert_eq!(current(&id).await, profile);
        let denied = cri.exec(&id, &["touch", "/tmp/x"], 5).await.unwrap();
        assert_eq!(denied.exit_code != 0, profile.contains("denies"), "{profile}: {denied:?}");
        cri.stop(&id, 20).await.unwrap();
        assert_eq!(cri.status(&id).await.unwrap().exit_code, 7, "{profile}: its signal reached it");
    }
    let missing =
        with_profile(plain("missing"), ProfileType::Localhost, "localhost/no-such-profile");
    let refused = cri.create(&sandbox, missing).await.unwrap_err();
    assert!(
        refused.code() == Code::InvalidArgument && refused.message().contains("no-such-profile"),
        "{refused}"
    );
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// Without a seccomp profile that would refuse it first.
#[cfg(target_arch = "x86_64")]
#[tokio::test]
#[ignore = "needs a kernel with AppArmor: hack/test runs it in hack/vm"]
async fn the_default_profile_has_no_sockets_of_ciphers() {
    let (machine, _daemon, cri, _) = ready().await;
    let program = socket_program(38);
    let layer = Layer::new()
        .entry(&Entry { name: "p", mode: 0o755, content: &program, ..Entry::default() })
        .bytes();
    let name =
        cri.pull_image(&machine, Image::new(&[(layer.clone(), gzip(&layer))], &json!({}))).await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let mut config = container("c", &name, "");
    config.command = vec!["/p".into()];
    let id = cri.run(&sandbox, config).await.unwrap();
    assert_eq!(
        cri.exited(&id).await.exit_code,
        nix::libc::EACCES,
        "whether the kernel has them or not"
    );
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
