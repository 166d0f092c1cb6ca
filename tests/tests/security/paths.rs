//! Attacks by paths: what a path leads to is changed while the runtime, as root of the host, makes,
//! opens or changes what is there.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use berth_proto::v1;
use berth_tests::{
    Config, Image, Layer, bind, busybox, container, gzip, has_systemd_scopes, pod, ready,
    ready_with,
};
use nix::{
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
    sys::stat::{Mode, SFlag, makedev, mknod},
};
use tonic::Code;

/// Exchanges `name` with a link to `target`, over and over, until this is dropped. A container that
/// has the directory as a volume can do the same.
pub(crate) struct Exchange {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<usize>>,
}

impl Exchange {
    pub(crate) fn begin(name: PathBuf, target: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let link = name.with_extension("link");
            let mut rounds = 0;
            while !told.load(Ordering::Relaxed) {
                match renameat2(AT_FDCWD, &name, AT_FDCWD, &link, RenameFlags::RENAME_EXCHANGE) {
                    Ok(()) => rounds += 1,
                    Err(_) => put_link(&link, &target),
                }
            }
            rounds
        });
        Self { stop, thread: Some(thread) }
    }

    /// How many times names were exchanged.
    pub(crate) fn end(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Either name may be gone: replaced by the runtime, or not made yet.
pub(crate) fn put_link(link: &Path, target: &Path) {
    if !fs::symlink_metadata(link).is_ok_and(|found| found.is_symlink()) {
        let _ = fs::remove_file(link);
        let _ = symlink(target, link);
    }
}

fn device(host: &Path, target: &str) -> v1::Device {
    let host_path = host.display().to_string();
    let container_path = target.to_owned();
    v1::Device { host_path, container_path, permissions: "rw".into() }
}

pub(crate) fn top(layer: Layer, config: &serde_json::Value) -> Image {
    let base = busybox().bytes();
    let top = layer.bytes();
    Image::new(&[(base.clone(), gzip(&base)), (top.clone(), gzip(&top))], config)
}

/// As CVE-2025-52565: a device node is made in a volume that another container has too.
#[tokio::test]
async fn a_device_node_that_turns_into_a_link_changes_no_file_of_the_host() {
    let (machine, _daemon, cri, image) = ready().await;
    let shared = machine.path("shared");
    let secret = machine.path("secret");
    (0..40).for_each(|other| fs::create_dir_all(shared.join(other.to_string())).unwrap());
    fs::write(&secret, "secret").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let attacker = Exchange::begin(shared.join("node"), secret.clone());
    let mut started = 0;
    for number in 0..60 {
        let mut victim = container(&format!("victim{number}"), &image, "exec sleep 1000");
        victim.mounts = vec![bind(&shared, "/shared")];
        // Many devices at the same path, which is replaced for each: as many chances for the
        // attacker in one start.
        let places = (0..if number % 4 == 0 { 1 } else { 40 })
            .map(|other| format!("/shared/{other}/../node"));
        victim.devices = places.map(|place| device(Path::new("/dev/zero"), &place)).collect();
        let id = cri.create(&sandbox, victim).await.unwrap();
        match cri.start(&id).await {
            Ok(()) => started += 1,
            Err(refused) => assert!(refused.message().contains("/../node"), "{refused}"),
        }
        let found = fs::metadata(&secret).unwrap();
        assert_eq!(
            (found.mode() & 0o7777, found.uid()),
            (0o600, 0),
            "start {number} changed a file of the host"
        );
        cri.remove(&id).await.unwrap();
    }
    assert!(attacker.end() > 1000 && started > 0, "there was no race");
    // Without a race the node is the one that was asked for.
    fs::remove_file(shared.join("node.link")).unwrap();
    let mut config = container("c", &image, "exec sleep 1000");
    config.mounts = vec![bind(&shared, "/shared")];
    config.devices = vec![device(Path::new("/dev/zero"), "/shared/node")];
    let id = cri.run(&sandbox, config).await.unwrap();
    assert_eq!(
        cri.sh(&id, "stat -c '%F %t:%T %a' /shared/node").await,
        "character special file 1:5 666\n"
    );
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// openat2(2) fails with EAGAIN when anything on the machine is renamed while it follows `..`, and
/// has to be repeated.
#[tokio::test]
async fn renames_elsewhere_fail_no_pull_and_no_start() {
    let (machine, _daemon, cri, _) = ready().await;
    let given = machine.path("given");
    fs::create_dir(&given).unwrap();
    fs::write(machine.path("elsewhere"), "").unwrap();
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let renames = Exchange::begin(machine.path("elsewhere"), given.clone());
    let link = Layer::new().directory("bin", 0o755).directory("tmp", 0o755);
    let link = link.symlink("data", &("bin/../".repeat(13) + "tmp"));
    let link = (0..500).fold(link, |layer, number| layer.file(&format!("data/file{number}"), b"x"));
    let image = cri.pull_image(&machine, top(link, &serde_json::json!({}))).await;
    for number in 0..20 {
        let mut config = container(&format!("c{number}"), &image, "true");
        config.mounts = (0..10).map(|number| bind(&given, &format!("/data/{number}"))).collect();
        cri.run(&sandbox, config).await.unwrap_or_else(|error| panic!("start {number}: {error}"));
    }
    assert!(renames.end() > 1000);
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// In a user namespace device nodes cannot be made, so the host's node is mounted. It must still be
/// that node by then.
#[tokio::test]
async fn what_was_a_device_when_it_was_asked_for_is_shown_as_nothing_else() {
    let (machine, _daemon, cri, image) = ready().await;
    let node = machine.path("node");
    mknod(&node, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 5)).unwrap();
    let ids = vec![v1::IdMapping { host_id: 200_000, container_id: 0, length: 65_536 }];
    let users =
        v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids };
    let mut config = pod(&machine, "p");
    let security = config.security();
    security.namespace_options.as_mut().unwrap().userns_options = Some(users.clone());
    let sandbox = cri.run_pod(config).await.unwrap();
    for (name, replace) in [("same", false), ("file", true), ("link", true)] {
        let mut config = container(name, &image, "exec sleep 1000");
        let security = config.security();
        security.namespace_options.as_mut().unwrap().userns_options = Some(users.clone());
        config.devices = vec![device(&node, "/dev/node")];
        let id = cri.create(&sandbox, config).await.unwrap();
        if replace {
            fs::rename(&node, machine.path("node.was")).unwrap();
            match name {
                "file" => fs::write(&node, "secret").unwrap(),
                _ => symlink("/etc/shadow", &node).unwrap(),
            }
        }
        let started = cri.start(&id).await;
        assert_eq!(started.is_ok(), !replace, "{name}: {started:?}");
        if replace {
            assert!(started.unwrap_err().message().contains("no longer the device"));
            fs::rename(machine.path("node.was"), &node).unwrap();
        }
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// Root in a container could change mode, owner and times of a host's device that it has open.
#[tokio::test]
async fn standard_input_is_the_containers_own_null_device() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let id = cri.run(&sandbox, container("c", &image, "exec sleep 1000")).await.unwrap();
    let seen = cri.sh(&id, "stat -L -c '%d:%i %t:%T' /dev/null /proc/1/fd/0 /proc/self/fd/0").await;
    let lines: Vec<&str> = seen.lines().collect();
    assert!(
        lines.len() == 3 && lines.iter().all(|line| *line == lines[0] && line.ends_with(" 1:3")),
        "{seen}"
    );
    let host = fs::metadata("/dev/null").unwrap();
    assert_ne!(lines[0], format!("{}:{} 1:3", host.dev(), host.ino()));
    assert_eq!(cri.sh(&id, "wc -c; readlink /proc/self/fd/0").await, "0\n/dev/null\n");
    // Another device of the same name is not the null device.
    cri.sh(&id, "rm /dev/null && mknod /dev/null c 1 5").await;
    let refused = cri.exec(&id, &["true"], 5).await.unwrap_err();
    assert!(refused.message().contains("not the null device"), "{refused}");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// CVE-2019-19921: an image that has something else in the places of /proc, /sys and /dev.
#[tokio::test]
async fn what_the_kernel_says_is_where_it_is_looked_for() {
    let (machine, _daemon, cri, _) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let none = serde_json::json!({});
    for (layer, volume, what) in [
        (Layer::new().symlink("proc", "/tmp"), None, "only a directory may be: /proc"),
        (Layer::new().symlink("proc", "no/such/place"), None, "only a directory may be: /proc"),
        (Layer::new().symlink("sys", "proc"), None, "only a directory may be: /sys"),
        (Layer::new().symlink("dev", "/etc"), None, "only a directory may be: /dev"),
        (Layer::new().file("proc", b"x"), None, "/proc"),
        (
            Layer::new().directory("proc", 0o755),
            Some("/proc"),
            "volume at /proc, which is the kernel's",
        ),
        (Layer::new(), Some("/sys/fs/cgroup"), "volume at /sys/fs/cgroup, which is the kernel's"),
        (
            Layer::new().symlink("data", "proc/sys"),
            Some("/data"),
            "into the kernel's own files: /data",
        ),
        (
            Layer::new().symlink("data", "/sys/kernel"),
            Some("/data"),
            "into the kernel's own files: /data",
        ),
    ] {
        let config =
            volume.map_or(none.clone(), |path| serde_json::json!({ "Volumes": { path: {} } }));
        let name = cri.pull_image(&machine, top(layer, &config)).await;
        let refused = cri.run(&sandbox, container("c", &name, "true")).await.unwrap_err();
        assert!(refused.message().contains(what), "{what}: {refused}");
        for created in cri.containers(v1::ContainerFilter::default()).await {
            cri.remove(&created.id).await.unwrap();
        }
    }
    // A mount target that the request names is meant, and links in other places are followed.
    fs::write(machine.path("uptime"), "1.00 1.00\n").unwrap();
    let name = cri.pull_image(&machine, top(Layer::new().symlink("data", "tmp"), &none)).await;
    let mut config = container("c", &name, "exec sleep 1000");
    config.mounts = vec![
        bind(&machine.path("uptime"), "/proc/uptime"),
        bind(&machine.path("uptime"), "/data/uptime"),
    ];
    let id = cri.run(&sandbox, config).await.unwrap();
    assert_eq!(cri.sh(&id, "cat /proc/uptime /tmp/uptime").await, "1.00 1.00\n1.00 1.00\n");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// As CVE-2024-40635: ids that mean something else to system calls, above all -1, which leaves the
/// user as it is: root.
#[tokio::test]
async fn a_user_whose_number_is_out_of_range_is_refused() {
    let (machine, _daemon, cri, _) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let passwd: &[u8] = b"last:x:4294967295:7::/:\ngroup:x:7:4294967295::/:\n\
        large:x:2147483648:7::/:\nweb:x:7:7::/:\n";
    let group: &[u8] = b"last:x:4294967295:web\n";
    for user in [
        "last",
        "group",
        "large",
        "web",
        "web:last",
        "4294967295",
        "2147483648",
        "0:4294967295",
        "0:2147483648",
    ] {
        let layer = Layer::new()
            .directory("etc", 0o755)
            .file("etc/passwd", passwd)
            .file("etc/group", group);
        let name = cri.pull_image(&machine, top(layer, &serde_json::json!({ "User": user }))).await;
        let refused =
            cri.run(&sandbox, container("c", &name, "exec sleep 1000")).await.unwrap_err();
        assert!(refused.message().contains("out of range"), "{user}: {refused}");
        for created in cri.containers(v1::ContainerFilter::default()).await {
            cri.remove(&created.id).await.unwrap();
        }
        let mut asked = container("c", &name, "true");
        let security = asked.security();
        security.supplemental_groups = vec![i64::from(u32::MAX)];
        assert_eq!(cri.create(&sandbox, asked).await.unwrap_err().code(), Code::InvalidArgument);
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

const HANDLERS: &str = "[handlers.crun]\noci_runtime = \"/usr/bin/crun\"\n[handlers.runc]\n\
    oci_runtime = \"/usr/sbin/runc\"\n";

/// Arguments and environment may have secrets in them.
#[tokio::test]
async fn what_a_container_is_made_of_is_for_root_alone() {
    let (machine, _daemon, cri, image) = ready_with(HANDLERS).await;
    fs::create_dir_all(machine.path("cdi")).unwrap();
    let hook = r#"{"cdiVersion":"1.0.0","kind":"test/hook","devices":[{"name":"d"}],
        "containerEdits":{"hooks":[{"hookName":"poststart","path":"/bin/true"}]}}"#;
    fs::write(machine.path("cdi/hook.json"), hook).unwrap();
    let is_private = |path: &Path| fs::metadata(path).unwrap().mode().trailing_zeros() >= 6;
    for handler in ["", if has_systemd_scopes() { "crun" } else { "runc" }] {
        let sandbox =
            cri.run_pod_under(handler, pod(&machine, &format!("p{handler}"))).await.unwrap();
        let mut config = container("c", &image, "exec sleep 1000");
        config.cdi_devices = vec![v1::CdiDevice { name: "test/hook=d".into() }];
        let id = cri.run(&sandbox, config).await.unwrap();
        let directory = machine.path("root/containers").join(&id);
        assert!(is_private(&directory), "{}", directory.display());
        for name in ["meta.json", "spec.json", "started.json"] {
            assert!(is_private(&directory.join(name)), "{handler} {name}");
        }
        let bundle = match handler {
            "" => machine.path("state/containers").join(&id).join("bundle"),
            _ => directory,
        };
        assert!(
            is_private(&bundle) && is_private(&bundle.join("config.json")),
            "{handler}: {}",
            bundle.display()
        );
        assert_eq!(
            cri.sh(&id, "stat -c %a /").await,
            "755\n",
            "the container's own root is as open as any"
        );
        cri.remove_pod(&sandbox).await.unwrap();
    }
    machine.assert_clean().await;
}
