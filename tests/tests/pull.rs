//! Pulls that take long, break off, or die with the daemon: what is listed is right, and nothing is left that no record names.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use berth_tests::{
    Answer, Asked, Cri, Daemon, FakeRegistry, Image, Layer, Machine, digest, eventually, gzip, in_guest,
};
use serde_json::{Value, json};
use tonic::Code;

const MIB: usize = 1 << 20;

async fn start() -> (Machine, Daemon, Cri) {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    (machine, daemon, cri)
}

/// Bytes that no compression makes smaller, the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}

/// Files by layer, and the image of them.
struct Made {
    layers: Vec<(String, Vec<u8>)>,
    diff_ids: Vec<String>,
    image: Image,
}

/// A layer per size, each with one file of that many bytes of noise.
fn made(sizes: &[usize]) -> Made {
    let layers: Vec<(String, Vec<u8>)> =
        sizes.iter().enumerate().map(|(n, size)| (format!("file{n}"), noise(n as u64 + 1, *size))).collect();
    let tars: Vec<Vec<u8>> = layers.iter().map(|(name, content)| Layer::new().file(name, content).bytes()).collect();
    let packed: Vec<(Vec<u8>, Vec<u8>)> = tars.iter().map(|tar| (tar.clone(), gzip(tar))).collect();
    let diff_ids = tars.iter().map(|tar| digest(tar)["sha256:".len()..].to_owned()).collect();
    Made { layers, diff_ids, image: Image::new(&packed, &json!({ "Cmd": ["x"] })) }
}

impl Made {
    /// Every file is there and whole.
    fn assert_whole(&self, machine: &Machine) {
        for (diff_id, (name, content)) in self.diff_ids.iter().zip(&self.layers) {
            let path = machine.path("root/layers").join(diff_id).join("fs").join(name);
            assert!(fs::read(&path).unwrap() == *content, "{} is not what it was", path.display());
        }
    }
}

fn names(machine: &Machine, directory: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(machine.path("root").join(directory)).unwrap().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

fn read_json(machine: &Machine, path: &str) -> Option<Value> {
    serde_json::from_slice(&fs::read(machine.path("root").join(path)).ok()?).ok()
}

/// Every layer, blob and part on disk is named by an image or by an unfinished pull.
fn assert_all_named(machine: &Machine) {
    let strings = |value: &Value| {
        value.as_array().into_iter().flatten().map(|v| v.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let hex = |value: &Value| value.as_str().unwrap()["sha256:".len()..].to_owned();
    let (mut layers, mut blobs, mut parts) = (BTreeSet::from(["empty".to_owned()]), BTreeSet::new(), BTreeSet::new());
    let index = read_json(machine, "images/index.json").unwrap_or_default();
    for descriptor in index["manifests"].as_array().into_iter().flatten() {
        let manifest = hex(&descriptor["digest"]);
        let config = hex(&read_json(machine, &format!("images/blobs/sha256/{manifest}")).unwrap()["config"]["digest"]);
        let diff_ids =
            read_json(machine, &format!("images/blobs/sha256/{config}")).unwrap()["rootfs"]["diff_ids"].clone();
        layers.extend(strings(&diff_ids).iter().map(|id| id["sha256:".len()..].to_owned()));
        blobs.extend([manifest, config]);
    }
    for name in names(machine, "images/pulls") {
        let pull = read_json(machine, &format!("images/pulls/{name}")).unwrap();
        pull["layers"].as_array().unwrap().iter().for_each(|keys| layers.extend(strings(keys)));
        parts.extend(strings(&pull["blobs"]));
    }
    for (directory, named) in [("layers", layers), ("images/blobs/sha256", blobs), ("images/partial", parts)] {
        let unnamed: Vec<String> = names(machine, directory).difference(&named).cloned().collect();
        assert!(unnamed.is_empty(), "{directory}: {unnamed:?}");
    }
}

/// Paths with their ranges, of those requests for blobs that are not the config.
fn asked_for(registry: &FakeRegistry, blob: &str) -> Vec<Option<String>> {
    let asked = registry.asked().into_iter().filter(|asked| asked.path.ends_with(blob));
    asked.map(|asked| asked.header("range").map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_large_blob_comes_in_several_ranges_at_once() {
    let (machine, _daemon, cri) = start().await;
    let made = made(&[41 * MIB, MIB]);
    let large = digest(&made.image.blobs[0]);
    // One stream is slow, and no range is answered before three are asked for: a client with one connection would get nowhere.
    let waiting = Arc::new((Mutex::new(0), Condvar::new()));
    let (path, blob) = (large.clone(), made.image.blobs[0].clone());
    let registry = FakeRegistry::start(&machine, made.image.clone(), move |asked| {
        if !asked.path.ends_with(&path) {
            return None;
        }
        let Some((start, end)) = asked.range(blob.len()) else {
            let headers = vec![("accept-ranges".to_owned(), "bytes".to_owned())];
            return Some(Answer {
                status: 200,
                headers,
                body: blob.clone(),
                pace: Some(120 << 10),
                ..Answer::default()
            });
        };
        let (count, more) = &*waiting;
        let mut asked_for = count.lock().unwrap();
        *asked_for += 1;
        let own = *asked_for;
        more.notify_all();
        let waited = more.wait_timeout_while(asked_for, Duration::from_secs(10), |count| *count < 3).unwrap();
        assert!(!waited.1.timed_out(), "fewer than three ranges at once");
        // One of them breaks.
        let cut_after = (own == 3).then_some(MIB);
        Some(Answer { status: 206, body: blob[start..end].to_vec(), cut_after, ..Answer::default() })
    });
    cri.pull(&format!("{}/a:1", registry.host)).await.unwrap();
    made.assert_whole(&machine);
    let ranges = asked_for(&registry, &large);
    assert!(ranges.len() >= 8 && ranges.iter().skip(1).all(Option::is_some), "{ranges:?}");
    assert_all_named(&machine);
    assert!(names(&machine, "images/pulls").is_empty() && names(&machine, "images/partial").is_empty());
}

#[tokio::test]
async fn a_registry_without_ranges_serves_large_blobs_and_broken_ones() {
    let (machine, _daemon, cri) = start().await;
    let made = made(&[20 * MIB]);
    let (path, blob) = (digest(&made.image.blobs[0]), made.image.blobs[0].clone());
    let asked_before = AtomicUsize::new(0);
    let registry = FakeRegistry::start(&machine, made.image.clone(), move |asked| {
        let first = asked.path.ends_with(&path).then(|| asked_before.fetch_add(1, Ordering::SeqCst) == 0)?;
        Some(Answer { status: 200, body: blob.clone(), cut_after: first.then_some(9 * MIB), ..Answer::default() })
    });
    cri.pull(&format!("{}/a:1", registry.host)).await.unwrap();
    made.assert_whole(&machine);
}

#[tokio::test]
async fn a_mirror_that_only_trickles_is_left_for_the_next_and_alone_it_is_an_error() {
    let (machine, daemon, cri) = start().await;
    let made = made(&[MIB]);
    let (path, blob) = (digest(&made.image.blobs[0]), made.image.blobs[0].clone());
    let slow = FakeRegistry::start(&machine, made.image.clone(), move |asked| {
        asked.path.ends_with(&path).then(|| Answer {
            status: 200,
            body: blob.clone(),
            pace: Some(1),
            ..Answer::default()
        })
    });
    let error = cri.pull(&format!("{}/a:1", slow.host)).await.unwrap_err();
    assert!(error.code() == Code::Unknown && error.message().contains("stalled"), "{error}");
    let good = FakeRegistry::start(&machine, made.image.clone(), |_| None);
    let directory = machine.path("certs.d/registry.example");
    fs::create_dir_all(&directory).unwrap();
    let hosts =
        format!("server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]\n[host.\"http://{}\"]\n", slow.host, good.host);
    fs::write(directory.join("hosts.toml"), hosts).unwrap();
    cri.pull("registry.example/a:1").await.unwrap();
    made.assert_whole(&machine);
    assert!(daemon.log().contains("stalled"), "{}", daemon.log());
}

#[tokio::test]
async fn what_an_unfinished_pull_has_is_not_pulled_again() {
    let (machine, daemon, cri) = start().await;
    // The second is large enough for its bytes to be kept.
    let made = made(&[3 * MIB, 40 * MIB]);
    let [small, large] = [0, 1].map(|n| digest(&made.image.blobs[n]));
    let blob = made.image.blobs[1].clone();
    let down = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let (path, is_down) = (large.clone(), down.clone());
    // It goes away in the middle of the large one.
    let registry = FakeRegistry::start(&machine, made.image.clone(), move |asked: &Asked| {
        let fails = asked.path.ends_with(&path) && is_down.load(Ordering::SeqCst);
        let (start, _) = asked.range(blob.len()).unwrap_or_default();
        fails.then(|| match start < 20 * MIB {
            true => Answer { status: 200, body: blob.clone(), cut_after: Some(20 * MIB), ..Answer::default() },
            false => Answer { status: 503, ..Answer::default() },
        })
    });
    let name = format!("{}/a:1", registry.host);
    let error = cri.pull(&name).await.unwrap_err();
    assert_eq!(error.code(), Code::Unknown, "{error}");
    assert_all_named(&machine);
    assert!(names(&machine, "layers").contains(&made.diff_ids[0]));
    let kept = fs::metadata(machine.path("root/images/partial").join(&large["sha256:".len()..])).unwrap().len();
    assert!(kept >= 4 << 20, "{kept}");
    assert!(cri.images().await.is_empty());

    daemon.kill();
    let daemon = machine.start().await;
    assert_all_named(&machine);
    let before = asked_for(&registry, &large).len();
    down.store(false, Ordering::SeqCst);
    cri.pull(&name).await.unwrap();
    made.assert_whole(&machine);
    assert_eq!(asked_for(&registry, &small).len(), 1, "the small layer was pulled twice");
    let first = asked_for(&registry, &large)[before].clone().unwrap();
    assert_eq!(first, format!("bytes={kept}-"));
    assert!(names(&machine, "images/pulls").is_empty() && names(&machine, "images/partial").is_empty());

    // Bytes of another boot may be anything: they are not used.
    cri.remove_image(&name).await.unwrap();
    down.store(true, Ordering::SeqCst);
    cri.pull(&name).await.unwrap_err();
    daemon.kill();
    let record = machine.path("root/images/pulls").join(names(&machine, "images/pulls").first().unwrap());
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let text = fs::read_to_string(&record).unwrap();
    assert!(text.contains(boot.trim()));
    fs::write(&record, text.replace(boot.trim(), "00000000-0000-0000-0000-000000000000")).unwrap();
    let _daemon = machine.start().await;
    assert!(names(&machine, "images/partial").is_empty());
    // And those that are damaged are found out, and not used again.
    cri.pull(&name).await.unwrap_err();
    let part = machine.path("root/images/partial").join(&large["sha256:".len()..]);
    let mut bytes = fs::read(&part).unwrap();
    bytes[1 << 20] ^= 1;
    fs::write(&part, bytes).unwrap();
    down.store(false, Ordering::SeqCst);
    assert_ne!(cri.pull(&name).await.unwrap_err().code(), Code::Ok);
    cri.pull(&name).await.unwrap();
    made.assert_whole(&machine);
    assert_all_named(&machine);
}

#[tokio::test]
async fn a_daemon_killed_at_any_moment_of_a_pull_never_lists_an_image_that_is_wrong() {
    let machine = Machine::new();
    let made = made(&[MIB, 40 * MIB, 2 * MIB, 5000]);
    let registry = FakeRegistry::start(&machine, made.image.clone(), |_| None);
    let name = format!("{}/a:1", registry.host);
    let mut daemon = machine.start().await;
    let cri = daemon.cri();
    let (mut listed, mut broken_off) = (0, 0);
    let begun = std::time::Instant::now();
    cri.pull(&name).await.unwrap();
    let whole = begun.elapsed();
    cri.remove_image(&name).await.unwrap();
    for step in 0..20 {
        let pull = tokio::spawn({
            let (cri, name) = (cri.clone(), name.clone());
            async move { cri.pull(&name).await }
        });
        tokio::time::sleep(whole * step / 18).await;
        daemon.kill();
        let _ = pull.await.unwrap();
        if step % 2 == 1 {
            lose_power(&machine);
        }
        daemon = machine.start().await;
        assert_all_named(&machine);
        match cri.image_status(&name).await.unwrap() {
            Some(_) => {
                listed += 1;
                made.assert_whole(&machine);
            }
            None => broken_off += 1,
        }
        // Whatever was there: the next pull makes it whole, and then it can go.
        if step % 4 > 1 {
            cri.pull(&name).await.unwrap_or_else(|error| panic!("step {step}: {error}"));
            made.assert_whole(&machine);
        }
        cri.remove_image(&name).await.unwrap();
    }
    assert!(broken_off >= 5, "{listed} pulls were done before the kill, {broken_off} were not");
    cri.pull(&name).await.unwrap();
    cri.remove_image(&name).await.unwrap();
    assert_all_named(&machine);
    assert_eq!(names(&machine, "layers"), BTreeSet::from(["empty".to_owned()]));
}

/// Inodes of the index and the blobs, which are replaced by a rename whenever they are written.
fn documents(machine: &Machine) -> BTreeMap<String, u64> {
    let index = ["index.json".to_owned()].into_iter();
    let blobs = names(machine, "images/blobs/sha256").into_iter().map(|name| format!("blobs/sha256/{name}"));
    let inode = |path: String| (path.clone(), fs::metadata(machine.path("root/images").join(path)).unwrap().ino());
    index.chain(blobs).map(inode).collect()
}

#[tokio::test]
async fn an_image_that_is_there_costs_one_head_and_is_not_written_again() {
    let (machine, daemon, cri) = start().await;
    let knows_head = Arc::new(AtomicBool::new(true));
    let rule = knows_head.clone();
    let registry = FakeRegistry::start(&machine, Image::busybox(), move |asked| {
        (asked.method == "HEAD" && !rule.load(Ordering::Relaxed)).then(|| Answer { status: 405, ..Answer::default() })
    });
    let name = format!("{}/a:1", registry.host);
    let id = cri.pull(&name).await.unwrap();
    let by_digest = format!("{}/a@{}", registry.host, digest(&Image::busybox().manifest));
    let synced = || read_json(&machine, "images/index.json.synced") == read_json(&machine, "images/index.json");
    eventually("the sync after a pull", async || synced()).await;
    let (asked, connections, written) = (registry.asked().len(), registry.connections(), documents(&machine));
    for name in [&name, &by_digest] {
        assert_eq!(cri.pull(name).await.unwrap(), id);
    }
    let methods: Vec<String> = registry.asked()[asked..].iter().map(|asked| asked.method.clone()).collect();
    assert_eq!(
        (methods.as_slice(), documents(&machine)),
        (["HEAD".to_owned(), "HEAD".to_owned()].as_slice(), written.clone())
    );
    assert_eq!(registry.connections(), connections, "by a connection that is there");

    // A registry that knows no HEAD is asked for everything but the layers; what is there stays as it is.
    knows_head.store(false, Ordering::Relaxed);
    let asked = registry.asked().len();
    assert_eq!(cri.pull(&name).await.unwrap(), id);
    let layer = digest(&Image::busybox().blobs[0]);
    assert!(registry.asked()[asked..].iter().all(|asked| !asked.path.contains(&layer)));
    let blobs = |documents: BTreeMap<String, u64>| documents.into_iter().filter(|(path, _)| path.starts_with("blobs"));
    assert!(blobs(documents(&machine)).eq(blobs(written)));
    cri.pull(&format!("{}/b:1", registry.host)).await.unwrap();
    eventually("the sync of an index alone", async || synced()).await;

    // What has been damaged since is pulled, whatever a HEAD says.
    knows_head.store(true, Ordering::Relaxed);
    let config = machine.path("root/images/blobs/sha256").join(&id["sha256:".len()..]);
    fs::write(&config, "{}").unwrap();
    assert_eq!(cri.pull(&name).await.unwrap(), id);
    assert_eq!(digest(&fs::read(&config).unwrap()), id);

    // A daemon that ends before its sync leaves it to the next one.
    daemon.kill();
    fs::remove_file(machine.path("root/images/index.json.synced")).unwrap();
    let _daemon = machine.start().await;
    eventually("the sync after a start", async || synced()).await;
}

/// What is on disk after a power loss, at worst: nothing of the files that were not synced yet, and records of another boot.
fn lose_power(machine: &Machine) {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let other = "00000000-0000-0000-0000-000000000000";
    for key in names(machine, "layers") {
        let directory = machine.path("root/layers").join(&key);
        let record = directory.join("layer.json");
        let text = fs::read_to_string(&record).unwrap_or_default();
        if !text.contains(boot.trim()) {
            continue;
        }
        fs::write(&record, text.replace(boot.trim(), other)).unwrap();
        for file in fs::read_dir(directory.join("fs")).unwrap().flatten() {
            fs::File::options().write(true).open(file.path()).unwrap().set_len(0).unwrap();
        }
    }
    for name in names(machine, "images/partial") {
        fs::File::options()
            .write(true)
            .open(machine.path("root/images/partial").join(name))
            .unwrap()
            .set_len(0)
            .unwrap();
    }
    for name in names(machine, "images/pulls") {
        let path = machine.path("root/images/pulls").join(name);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace(boot.trim(), other)).unwrap();
    }
}

#[tokio::test]
async fn an_image_of_120_layers_and_a_layer_of_100_000_files() {
    let machine = Machine::new();
    // Some disks take half a millisecond for a file.
    let root = machine.path("root");
    fs::create_dir_all(&root).unwrap();
    machine.output("mount", &["-t", "tmpfs", "tmpfs", root.to_str().unwrap()]);
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let many = made(&[1000; 120]);
    let registry = FakeRegistry::start(&machine, many.image.clone(), |_| None);
    cri.pull(&format!("{}/a:1", registry.host)).await.unwrap();

    let mut layer = Layer::new();
    for directory in 0..100 {
        layer = layer.directory(&format!("d{directory}"), 0o755);
        for file in 0..1000 {
            layer = layer.file(&format!("d{directory}/f{file}"), b"x");
        }
    }
    let registry = FakeRegistry::start(&machine, Image::simple(layer, &["x"]), |_| None);
    let id = cri.pull(&format!("{}/b:1", registry.host)).await.unwrap();
    let usage = cri.image_fs().await;
    let on_disk = machine.output("du", &["-s", "--block-size=1", machine.path("root/layers").to_str().unwrap()]);
    let on_disk: u64 = on_disk.split_whitespace().next().unwrap().parse().unwrap();
    let inodes = machine.output("du", &["-s", "--inodes", machine.path("root/layers").to_str().unwrap()]);
    let inodes: u64 = inodes.split_whitespace().next().unwrap().parse().unwrap();
    let near = |counted: u64, real: u64| counted.abs_diff(real) <= real / 100;
    assert!(near(usage.0, on_disk) && near(usage.1, inodes), "{usage:?}, du says {on_disk} and {inodes}");
    cri.remove_image(&id).await.unwrap();
    let trash = ["-c".to_owned(), format!("ls -A {}/trash", root.display())];
    eventually("the files gone", async || machine.output("sh", &[&trash[0], &trash[1]]).is_empty()).await;
    drop(daemon);
    machine.output("umount", &[root.to_str().unwrap()]);
}

#[tokio::test]
async fn a_layer_of_a_gigabyte_is_unpacked_and_one_that_only_claims_to_be_small_is_not() {
    if in_guest() {
        eprintln!("skipped: memory for layers of a gigabyte is on the host");
        return;
    }
    let (machine, daemon, cri) = start().await;
    let block = noise(1, 16 << 10);
    let content = block.repeat(64 << 10);
    let tar = Layer::new().file("large", &content).bytes();
    let packed = gzip(&tar);
    let image = Image::new(&[(tar, packed)], &json!({}));
    let registry = FakeRegistry::start(&machine, image, |_| None);
    cri.pull(&format!("{}/large:1", registry.host)).await.unwrap();
    let peak = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let peak = peak.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 100 << 10, "the daemon had {peak} KiB in memory");

    let bomb = Layer::new().file("zeros", &vec![0; (1 << 30) + (200 << 20)]).bytes();
    let packed = zstd::encode_all(bomb.as_slice(), 3).unwrap();
    let image = Image::new(&[(bomb, packed)], &json!({}));
    let registry = FakeRegistry::start(&machine, image, |_| None);
    let error = cri.pull(&format!("{}/bomb:1", registry.host)).await.unwrap_err();
    assert!(error.code() == Code::FailedPrecondition && error.message().contains("became more than"), "{error}");
}
