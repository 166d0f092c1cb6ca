//! SELinux labels, in a machine that has it: `VM_SECURITY=selinux hack/vm run "hack/guest/selinux
//! target/.../security-HASH --ignored selinux::"`.

use std::{fs, os::unix::fs::symlink, path::Path};

use berth_proto::v1;
use berth_tests::{Config, Cri, Machine, bind, container, pod, ready};

fn options(kind: &str, level: &str) -> Option<v1::SeLinuxOption> {
    Some(v1::SeLinuxOption {
        r#type: kind.to_owned(),
        level: level.to_owned(),
        ..Default::default()
    })
}

fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.security()
}

/// The label of the container's first process, which an exec must have too.
async fn process(cri: &Cri, id: &str) -> String {
    let label = cri.sh(id, "cat /proc/1/attr/current; echo; cat /proc/self/attr/current").await;
    let (first, exec) = label.split_once('\n').unwrap();
    let first = first.trim_end_matches('\0');
    let exec = exec.trim_end_matches('\0');
    assert_eq!(first, exec);
    first.to_owned()
}

fn label(machine: &Machine, path: &Path) -> String {
    machine.output("stat", &["-c", "%C", &path.display().to_string()]).trim().to_owned()
}

/// The label of a file, as the host sees it.
async fn file(machine: &Machine, cri: &Cri, id: &str, path: &str) -> String {
    let pid = cri.info(id).await["pid"].as_u64().unwrap();
    label(machine, Path::new(&format!("/proc/{pid}/root{path}")))
}

#[tokio::test]
#[ignore = "needs a kernel with SELinux: hack/test runs it in one"]
async fn a_pods_processes_and_files_bear_a_level_of_its_own() {
    let (machine, _daemon, cri, image) = ready().await;
    let mut levels = Vec::new();
    for name in ["one", "two"] {
        let sandbox = cri.run_pod(pod(&machine, name)).await.unwrap();
        let id = cri.run(&sandbox, container("c", &image, "sleep 1000")).await.unwrap();
        let own = process(&cri, &id).await;
        let level = own.strip_prefix("system_u:system_r:container_t:").unwrap().to_owned();
        assert!(level.starts_with("s0:c") && level.contains(','), "{own}");
        for path in [
            "/",
            "/bin/sh",
            "/etc/hosts",
            "/etc/resolv.conf",
            "/dev",
            "/dev/null",
            "/dev/pts",
            "/dev/shm",
            "/dev/mqueue",
        ] {
            let found = file(&machine, &cri, &id, path).await;
            assert_eq!(found, format!("system_u:object_r:container_file_t:{level}"), "{path}");
        }
        let mut special = container("d", &image, "sleep 1000");
        security(&mut special).selinux_options = options("container_init_t", "");
        let special = cri.run(&sandbox, special).await.unwrap();
        assert_eq!(
            process(&cri, &special).await,
            format!("system_u:system_r:container_init_t:{level}")
        );
        levels.push(level);
    }
    assert_ne!(levels[0], levels[1]);
    for pod in cri.pods(v1::PodSandboxFilter::default()).await {
        cri.remove_pod(&pod.id).await.unwrap();
    }
    machine.assert_clean().await;
}

#[tokio::test]
#[ignore = "needs a kernel with SELinux: hack/test runs it in one"]
async fn labels_are_taken_from_the_request_or_refused() {
    let (machine, _daemon, cri, image) = ready().await;
    let mut config = pod(&machine, "p");
    let of_pod = config.security();
    (of_pod.selinux_options, of_pod.privileged) = (options("", "s0:c4,c5"), true);
    let ids = vec![v1::IdMapping { host_id: 200_000, container_id: 0, length: 65_536 }];
    let sandbox = cri.run_pod(config).await.unwrap();
    let inherits = cri.run(&sandbox, container("c", &image, "sleep 1000")).await.unwrap();
    assert_eq!(process(&cri, &inherits).await, "system_u:system_r:container_t:s0:c4,c5");
    let mut own = container("o", &image, "sleep 1000");
    security(&mut own).selinux_options = options("spc_t", "s0:c7");
    let own = cri.run(&sandbox, own).await.unwrap();
    assert_eq!(process(&cri, &own).await, "system_u:system_r:spc_t:s0:c7");
    assert_eq!(file(&machine, &cri, &own, "/").await, "system_u:object_r:container_file_t:s0:c7");
    let mut privileged = container("r", &image, "sleep 1000");
    security(&mut privileged).privileged = true;
    let privileged = cri.run(&sandbox, privileged).await.unwrap();
    assert_eq!(process(&cri, &privileged).await, "system_u:system_r:spc_t:s0");
    for (kind, what) in [("no_such_t", "no such label"), ("a b", "selinux_options")] {
        let mut wrong = container("w", &image, "true");
        security(&mut wrong).selinux_options = options(kind, "");
        let refused = cri.create(&sandbox, wrong).await.unwrap_err();
        assert!(
            refused.code() == tonic::Code::InvalidArgument && refused.message().contains(what),
            "{refused}"
        );
    }
    cri.remove_pod(&sandbox).await.unwrap();

    let users =
        v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids };
    let mut config = pod(&machine, "u");
    let namespaces = config.security().namespace_options.as_mut();
    namespaces.unwrap().userns_options = Some(users.clone());
    let sandbox = cri.run_pod(config).await.unwrap();
    let mut config = container("c", &image, "sleep 1000");
    security(&mut config).namespace_options.as_mut().unwrap().userns_options = Some(users);
    let id = cri.run(&sandbox, config).await.unwrap();
    assert!(process(&cri, &id).await.starts_with("system_u:system_r:container_t:s0:c"));
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
#[ignore = "needs a kernel with SELinux: hack/test runs it in one"]
async fn volumes_are_relabelled_where_asked_and_nowhere_else() {
    let (machine, _daemon, cri, image) = ready().await;
    fs::create_dir_all(machine.path("v/deep")).unwrap();
    for name in ["v/file", "v/deep/file", "outside", "plain"] {
        fs::write(machine.path(name), "x").unwrap();
    }
    symlink(machine.path("outside"), machine.path("v/link")).unwrap();
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let mount = |host: &Path, selinux_relabel| v1::Mount {
        selinux_relabel,
        ..bind(host, &format!("/m{}", host.display()))
    };
    let mut config = container("c", &image, "sleep 1000");
    config.mounts = vec![mount(&machine.path("v"), true), mount(&machine.path("plain"), false)];
    let id = cri.run(&sandbox, config).await.unwrap();
    let files =
        process(&cri, &id).await.replace("system_r:container_t", "object_r:container_file_t");
    for name in ["v", "v/file", "v/deep", "v/deep/file", "v/link"] {
        assert_eq!(label(&machine, &machine.path(name)), files, "{name}");
    }
    for name in ["outside", "plain"] {
        assert_ne!(label(&machine, &machine.path(name)), files, "{name}");
    }
    let mut config = container("e", &image, "true");
    config.mounts = vec![mount(Path::new("/etc"), true)];
    let refused = cri.run(&sandbox, config).await.unwrap_err();
    assert!(refused.message().contains("nobody may relabel /etc"), "{refused}");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
