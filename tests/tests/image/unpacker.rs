//! The process that unpacks a layer: what it can reach, and what happens when it is killed.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use berth_tests::{Daemon, Entry, FakeRegistry, Image, Layer, Machine, Response, eventually, gzip};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tar::EntryType;
use tonic::Code;

use crate::{
    assert_no_image,
    content::{MIB, made, names},
    ready,
};

/// CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID and CAP_SETFCAP (capabilities(7)).
const CAPABILITIES: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 31;

/// A registry that sends layers slowly for as long as the flag is set: 8 MiB in over a minute.
fn slow_registry(machine: &Machine, image: &Image) -> (FakeRegistry, Arc<AtomicBool>) {
    let slow = Arc::new(AtomicBool::new(true));
    let is_slow = slow.clone();
    let layer = image.blobs[0].clone();
    let path = berth_tests::digest(&layer);
    let registry = FakeRegistry::start(machine, image.clone(), move |request| {
        let found = request.path.ends_with(&path) && is_slow.load(Ordering::SeqCst);
        let body = layer.clone();
        found.then(|| Response { status: 200, body, pace: Some(2048), ..Response::default() })
    });
    (registry, slow)
}

/// The processes that unpack layers for the daemon.
fn unpackers(daemon: &Daemon) -> Vec<i32> {
    let own = format!("berthd\0unpack\0{}\0", daemon.pid());
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == own)
    })
    .collect()
}

/// Waits until a layer is being unpacked, and returns the process.
async fn unpacker(daemon: &Daemon) -> i32 {
    let mut found = Vec::new();
    eventually("a layer is unpacked", async || {
        found = unpackers(daemon);
        // Its name says that it has begun to confine itself, and its filter that it is done.
        found.first().is_some_and(|pid| field(*pid, "Seccomp:") == "2")
    })
    .await;
    found[0]
}

fn field(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    value.unwrap_or_default().trim().to_owned()
}

fn link(pid: i32, name: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/{name}")).unwrap()
}

#[tokio::test]
async fn a_layer_is_unpacked_by_a_process_that_reaches_nothing_but_that_layer() {
    let (machine, daemon, cri) = ready().await;
    let made = made(&[8 * MIB]);
    let (registry, _slow) = slow_registry(&machine, &made.image);
    let name = format!("{}/a:1", registry.host);
    let pull = tokio::spawn(async move { cri.pull(&name).await });
    let pid = unpacker(&daemon).await;
    for capabilities in ["CapPrm:", "CapEff:"] {
        let held = u64::from_str_radix(&field(pid, capabilities), 16).unwrap();
        assert_eq!(held, CAPABILITIES, "{capabilities} {held:x}");
    }
    assert_eq!((&*field(pid, "NoNewPrivs:"), &*field(pid, "CapInh:")), ("1", "0000000000000000"));
    let network = link(pid, "ns/net");
    assert_ne!(network, link(daemon.pid(), "ns/net"));
    assert_ne!(network, link(std::process::id() as i32, "ns/net"));
    let interfaces = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    assert!(interfaces.lines().skip(2).all(|line| line.trim().starts_with("lo:")), "{interfaces}");
    // Its root is the layer, and below that are all the files that it has open.
    let root = link(pid, "root");
    assert_eq!(root.parent(), Some(&*machine.path("root/layers")), "{}", root.display());
    for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let file = fs::read_link(descriptor.path()).unwrap_or_default();
        let expected = file.starts_with(&root)
            || file.to_string_lossy().starts_with("pipe:")
            || file.to_string_lossy().starts_with("net:")
            // What whoever runs the tests has left open for all programs.
            || file == Path::new("/dev/null");
        let descriptor = descriptor.file_name();
        assert!(expected, "{} is {}", descriptor.display(), file.display());
    }
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    pull.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn a_process_that_is_killed_while_it_unpacks_is_one_failed_pull() {
    let (machine, daemon, cri) = ready().await;
    let made = made(&[8 * MIB]);
    let (registry, slow) = slow_registry(&machine, &made.image);
    let name = format!("{}/a:1", registry.host);
    for signal in [Signal::SIGKILL, Signal::SIGABRT] {
        let pull = tokio::spawn({
            let (cri, name) = (cri.clone(), name.clone());
            async move { cri.pull(&name).await }
        });
        kill(Pid::from_raw(unpacker(&daemon).await), signal).unwrap();
        let error = pull.await.unwrap().unwrap_err();
        assert_eq!(error.code(), Code::Internal, "{error}");
        let said = format!("ended early (signal: {}", signal as i32);
        assert!(error.message().contains(&said), "{error}");
        assert_no_image(&machine);
    }
    slow.store(false, Ordering::SeqCst);
    cri.pull(&name).await.unwrap();
    made.assert_whole(&machine);
    assert_eq!(unpackers(&daemon), Vec::<i32>::new());
}

#[tokio::test]
async fn what_a_killed_daemon_was_unpacking_ends_with_it() {
    let (machine, daemon, cri) = ready().await;
    let made = made(&[8 * MIB]);
    let (registry, slow) = slow_registry(&machine, &made.image);
    let name = format!("{}/a:1", registry.host);
    let pull = tokio::spawn({
        let (cri, name) = (cri.clone(), name.clone());
        async move { cri.pull(&name).await }
    });
    let pid = unpacker(&daemon).await;
    // A process that does not run cannot notice the end of a pipe.
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    daemon.kill();
    pull.await.unwrap().unwrap_err();
    eventually("the end of the process", async || !fs::exists(format!("/proc/{pid}")).unwrap())
        .await;
    // A layer that somebody still writes, as a killed process does in a system call that takes
    // long: it is left alone, and whoever starts next deletes it.
    let held = machine.path("root/layers/held.tmp");
    fs::create_dir(&held).unwrap();
    let writer = Flock::lock(fs::File::open(&held).unwrap(), FlockArg::LockExclusive).unwrap();
    let daemon = machine.start().await;
    assert_eq!(Vec::from_iter(names(&machine, "layers")), ["empty", "held.tmp"]);
    drop(writer);
    daemon.kill();
    let daemon = machine.start().await;
    assert_eq!(Vec::from_iter(names(&machine, "layers")), ["empty"]);
    slow.store(false, Ordering::SeqCst);
    daemon.cri().pull(&name).await.unwrap();
    made.assert_whole(&machine);
}

#[tokio::test]
async fn devices_of_a_layer_have_its_attributes() {
    let (machine, _daemon, cri) = ready().await;
    let device = |name, kind| Entry { name, kind, mode: 0o4620, owner: 5, ..Entry::default() };
    let tar = Layer::new()
        .directory("dev", 0o755)
        .device(&device("dev/null", EntryType::Char), 1, 3)
        .device(&device("dev/disk", EntryType::Block), 8, 300)
        .hard_link("dev/zero", "dev/null")
        .device(&device("dev/file", EntryType::Char), 1, 3)
        .file("dev/file", b"")
        // A whiteout in the form of overlayfs.
        .device(&device("dev/gone", EntryType::Char), 0, 0)
        .bytes();
    let image = Image::new(&[(tar.clone(), gzip(&tar))], &json!({ "Cmd": ["x"] }));
    let registry = FakeRegistry::start(&machine, image, |_| None);
    cri.pull(&format!("{}/a:1", registry.host)).await.unwrap();
    let layer = names(&machine, "layers").into_iter().find(|name| name != "empty").unwrap();
    let directory = machine.path("root/layers").join(layer).join("fs/dev");
    for (name, is_block, number) in [
        ("null", false, (1, 3)),
        ("zero", false, (1, 3)),
        ("disk", true, (8, 300)),
        ("gone", false, (0, 0)),
    ] {
        let found = fs::metadata(directory.join(name)).unwrap();
        let kind = found.file_type();
        assert_eq!(
            (kind.is_block_device(), kind.is_char_device()),
            (is_block, !is_block),
            "{name}"
        );
        assert_eq!(nix::libc::major(found.rdev()), number.0, "{name}");
        assert_eq!(nix::libc::minor(found.rdev()), number.1, "{name}");
        assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (0o4620, 5, 5), "{name}");
        assert_eq!(found.mtime(), 1_700_000_000, "{name}");
    }
    assert!(fs::metadata(directory.join("file")).unwrap().is_file());
    assert_eq!(fs::metadata(&directory).unwrap().mtime(), 1_700_000_000);
}
