//! Seccomp profiles, as far as it takes a program to see their effect.

use berth_proto::v1::{self, security_profile::ProfileType};
use berth_tests::{
    Capability, Config, Entry, Image, Layer, container, gzip, i386_program, pod, ready,
    socket_program,
};
use serde_json::json;

#[tokio::test]
async fn programs_of_32_bits_run_under_the_default_profile() {
    let (machine, _daemon, cri, _) = ready().await;
    let program = i386_program();
    let layer = Layer::new()
        .entry(&Entry { name: "program", mode: 0o755, content: &program, ..Entry::default() })
        .bytes();
    let name =
        cri.pull_image(&machine, Image::new(&[(layer.clone(), gzip(&layer))], &json!({}))).await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    for profile in [ProfileType::Unconfined, ProfileType::RuntimeDefault] {
        let mut config = container(&format!("{profile:?}"), &name, "");
        config.command = vec!["/program".into()];
        let security = config.security();
        security.seccomp = Some(v1::SecurityProfile {
            profile_type: profile.into(),
            localhost_ref: String::new(),
        });
        let started = cri.run(&sandbox, config).await;
        if !Capability::Programs32Bit.is_there() {
            // As in User-Mode Linux, which has no 32-bit table of system calls.
            assert!(started.unwrap_err().message().contains("Exec format error"));
            continue;
        }
        assert_eq!(cri.exited(&started.unwrap()).await.exit_code, 42, "{profile:?}");
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn the_default_profile_has_no_sockets_of_ciphers_and_hypervisors() {
    let (machine, _daemon, cri, _) = ready().await;
    // AF_UNIX, AF_ALG and AF_VSOCK, and the last two again with high bits that the kernel ignores.
    let families = [(1, 253), (38, 1), (40, 1), (1 << 32 | 38, 1), (1 << 32 | 40, 1)];
    let programs = families.map(|(family, _)| (format!("socket-{family}"), socket_program(family)));
    let add = |layer: Layer, (name, content): &(String, Vec<u8>)| {
        layer.entry(&Entry { name, mode: 0o755, content, ..Entry::default() })
    };
    let layer = programs.iter().fold(Layer::new(), add).bytes();
    let name =
        cri.pull_image(&machine, Image::new(&[(layer.clone(), gzip(&layer))], &json!({}))).await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    for (family, expected) in families {
        let mut config = container(&format!("c{family}"), &name, "");
        config.command = vec![format!("/socket-{family}")];
        let security = config.security();
        let profile_type = ProfileType::RuntimeDefault.into();
        security.seccomp = Some(v1::SecurityProfile { profile_type, localhost_ref: String::new() });
        let id = cri.run(&sandbox, config).await.unwrap();
        assert_eq!(cri.exited(&id).await.exit_code, expected, "socket({family:#x})");
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// System calls that the shim makes after it has installed the filter are not the program's: a
/// strict profile need not allow them.
#[tokio::test]
async fn a_profile_may_refuse_what_only_the_shim_needs() {
    let (machine, _daemon, cri, image) = ready().await;
    let profile = machine.path("strict.json");
    let refused = ["clone", "clone3", "fork", "vfork", "setsid", "ioctl"];
    let rule = json!({ "names": refused, "action": "SCMP_ACT_ERRNO", "errnoRet": 1 });
    let profile_json = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
    std::fs::write(&profile, profile_json.to_string()).unwrap();
    let mut config = pod(&machine, "p");
    let namespaces = |security: &mut Option<v1::NamespaceOption>| {
        security.as_mut().unwrap().pid = v1::NamespaceMode::Pod.into();
    };
    namespaces(&mut config.security().namespace_options);
    let sandbox = cri.run_pod(config).await.unwrap();
    // Builtins only, since the shell cannot fork.
    let script = "read -r pid name state parent group session terminal rest < /proc/self/stat
        [ $session = $pid ] && echo leads its session; [ $terminal = 0 ] || echo has a terminal; (:); echo forked";
    for no_new_privs in [false, true] {
        let mut config = container(&format!("c{no_new_privs}"), &image, script);
        config.tty = true;
        let security = config.security();
        namespaces(&mut security.namespace_options);
        security.no_new_privs = no_new_privs;
        let local = v1::SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: profile.display().to_string(),
        };
        security.seccomp = Some(local);
        let mut waiting = config.clone();
        let id = cri.run(&sandbox, config).await.unwrap();
        assert_ne!(cri.exited(&id).await.exit_code, 0);
        let log =
            std::fs::read_to_string(machine.path(&format!("logs/p/c{no_new_privs}.log"))).unwrap();
        assert!(log.contains("leads its session") && log.contains("has a terminal"), "{log}");
        assert!(log.contains("can't fork") && !log.contains("forked"), "{log}");
        waiting.metadata.as_mut().unwrap().attempt = 1;
        (waiting.tty, waiting.command) = (false, ["sleep", "1000"].map(str::to_owned).to_vec());
        let id = cri.run(&sandbox, waiting).await.unwrap();
        let exec = cri.exec(&id, &["sh", "-c", script], 20).await.unwrap();
        assert_eq!(exec.stdout, b"leads its session\n", "{exec:?}");
        assert!(String::from_utf8_lossy(&exec.stderr).contains("can't fork"), "{exec:?}");
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
