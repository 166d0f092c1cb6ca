//! Pulls that break off or end with the daemon: what is listed is complete, and no file is left
//! that no record names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use berth_tests::{FakeRegistry, Image, Machine, Request, Response, digest, eventually};
use tonic::Code;

use crate::content::{MIB, assert_all_named, made, names, ranges_of, read_json, start};

#[tokio::test]
async fn what_an_unfinished_pull_has_is_not_pulled_again() {
    let (machine, daemon, cri) = start().await;
    // The second layer is large enough for its partial blob to be kept.
    let made = made(&[3 * MIB, 40 * MIB]);
    let [small, large] = [0, 1].map(|n| digest(&made.image.blobs[n]));
    let blob = made.image.blobs[1].clone();
    let down = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let path = large.clone();
    let is_down = down.clone();
    // The registry goes away in the middle of the large layer.
    let registry = FakeRegistry::start(&machine, made.image.clone(), move |request: &Request| {
        let fails = request.path.ends_with(&path) && is_down.load(Ordering::SeqCst);
        let (start, _) = request.range(blob.len()).unwrap_or_default();
        fails.then(|| match start < 20 * MIB {
            true => Response {
                status: 200,
                body: blob.clone(),
                cut_after: Some(20 * MIB),
                ..Response::default()
            },
            false => Response { status: 503, ..Response::default() },
        })
    });
    let name = format!("{}/a:1", registry.host);
    let error = cri.pull(&name).await.unwrap_err();
    assert_eq!(error.code(), Code::Unknown, "{error}");
    assert_all_named(&machine);
    assert!(names(&machine, "layers").contains(&made.diff_ids[0]));
    let kept = fs::metadata(machine.path("root/images/partial").join(&large["sha256:".len()..]))
        .unwrap()
        .len();
    assert!(kept >= 4 << 20, "{kept}");
    assert!(cri.images().await.is_empty());

    daemon.kill();
    let daemon = machine.start().await;
    assert_all_named(&machine);
    let before = ranges_of(&registry, &large).len();
    down.store(false, Ordering::SeqCst);
    cri.pull(&name).await.unwrap();
    made.assert_whole(&machine);
    assert_eq!(ranges_of(&registry, &small).len(), 1, "the small layer was pulled twice");
    let first = ranges_of(&registry, &large)[before].clone().unwrap();
    assert_eq!(first, format!("bytes={kept}-"));
    assert!(
        names(&machine, "images/pulls").is_empty() && names(&machine, "images/partial").is_empty()
    );

    // Bytes that were written in another boot may not have reached the disk, and are not used.
    cri.remove_image(&name).await.unwrap();
    down.store(true, Ordering::SeqCst);
    cri.pull(&name).await.unwrap_err();
    daemon.kill();
    let record =
        machine.path("root/images/pulls").join(names(&machine, "images/pulls").first().unwrap());
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let text = fs::read_to_string(&record).unwrap();
    assert!(text.contains(boot.trim()));
    fs::write(&record, text.replace(boot.trim(), "00000000-0000-0000-0000-000000000000")).unwrap();
    let _daemon = machine.start().await;
    assert!(names(&machine, "images/partial").is_empty());
    // Damaged bytes are noticed by the digest, and not used again.
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
    let mut listed = 0;
    let mut broken_off = 0;
    let begun = std::time::Instant::now();
    cri.pull(&name).await.unwrap();
    let whole = begun.elapsed();
    cri.remove_image(&name).await.unwrap();
    for step in 0..20 {
        let pull = tokio::spawn({
            let cri = cri.clone();
            let name = name.clone();
            async move { cri.pull(&name).await }
        });
        // Steps through the time that a whole pull took, and a bit beyond.
        tokio::time::sleep(whole * step / 18).await;
        daemon.kill();
        let _ = pull.await.unwrap();
        daemon = machine.start().await;
        assert_all_named(&machine);
        match cri.image_status(&name).await.unwrap() {
            Some(_) => {
                listed += 1;
                made.assert_whole(&machine);
            }
            None => broken_off += 1,
        }
        // Whatever was left: the next pull completes the image, and then the image can be removed.
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

#[tokio::test]
async fn a_blob_whose_daemon_was_killed_before_it_was_in_the_index_is_removed_at_the_next_start() {
    let (machine, mut daemon, cri) = start().await;
    let made = made(&[5000]);
    let registry = FakeRegistry::start(&machine, made.image.clone(), |_| None);
    let name = format!("{}/a:1", registry.host);
    for has_an_image in [false, true] {
        if has_an_image {
            cri.pull(&name).await.unwrap();
        }
        // Half of a blob under its temporary name, and one that was renamed already.
        let blobs = machine.path("root/images/blobs/sha256");
        let hex = &digest(b"{}")["sha256:".len()..];
        fs::write(blobs.join(format!("{hex}.tmp")), "{").unwrap();
        fs::write(blobs.join(hex), "{}").unwrap();
        daemon.kill();
        daemon = machine.start().await;
        assert_all_named(&machine);
    }
    made.assert_whole(&machine);
}

/// Inodes of the index and the blobs. Each write replaces a file by a rename, so that a written
/// file has another inode.
fn documents(machine: &Machine) -> BTreeMap<String, u64> {
    let index = ["index.json".to_owned()].into_iter();
    let blobs = names(machine, "images/blobs/sha256")
        .into_iter()
        .map(|name| format!("blobs/sha256/{name}"));
    let inode = |path: String| {
        (path.clone(), fs::metadata(machine.path("root/images").join(path)).unwrap().ino())
    };
    index.chain(blobs).map(inode).collect()
}

#[tokio::test]
async fn an_image_that_is_there_costs_one_head_and_is_not_written_again() {
    let (machine, daemon, cri) = start().await;
    let knows_head = Arc::new(AtomicBool::new(true));
    let rule = knows_head.clone();
    let registry = FakeRegistry::start(&machine, Image::busybox(), move |request| {
        (request.method == "HEAD" && !rule.load(Ordering::Relaxed))
            .then(|| Response { status: 405, ..Response::default() })
    });
    let name = format!("{}/a:1", registry.host);
    let id = cri.pull(&name).await.unwrap();
    let by_digest = format!("{}/a@{}", registry.host, digest(&Image::busybox().manifest));
    let synced = || {
        read_json(&machine, "images/index.json.synced") == read_json(&machine, "images/index.json")
    };
    eventually("the sync after a pull", async || synced()).await;
    let (asked, connections, written) =
        (registry.requests().len(), registry.connections(), documents(&machine));
    for name in [&name, &by_digest] {
        assert_eq!(cri.pull(name).await.unwrap(), id);
    }
    let methods: Vec<String> =
        registry.requests()[asked..].iter().map(|request| request.method.clone()).collect();
    assert_eq!(
        (methods.as_slice(), documents(&machine)),
        (["HEAD".to_owned(), "HEAD".to_owned()].as_slice(), written.clone())
    );
    assert_eq!(registry.connections(), connections, "by a connection that is there");

    // A registry that refuses HEAD is asked for manifest and config, and not for layers that are
    // there.
    knows_head.store(false, Ordering::Relaxed);
    let asked = registry.requests().len();
    assert_eq!(cri.pull(&name).await.unwrap(), id);
    let layer = digest(&Image::busybox().blobs[0]);
    assert!(registry.requests()[asked..].iter().all(|request| !request.path.contains(&layer)));
    let blobs = |documents: BTreeMap<String, u64>| {
        documents.into_iter().filter(|(path, _)| path.starts_with("blobs"))
    };
    assert!(blobs(documents(&machine)).eq(blobs(written)));
    cri.pull(&format!("{}/b:1", registry.host)).await.unwrap();
    eventually("the sync of an index alone", async || synced()).await;

    // A layer that was damaged since is pulled again, although HEAD says that the image is up to
    // date.
    knows_head.store(true, Ordering::Relaxed);
    let config = machine.path("root/images/blobs/sha256").join(&id["sha256:".len()..]);
    fs::write(&config, "{}").unwrap();
    assert_eq!(cri.pull(&name).await.unwrap(), id);
    assert_eq!(digest(&fs::read(&config).unwrap()), id);

    // A daemon that ends before its background sync leaves that to the next one.
    daemon.kill();
    fs::remove_file(machine.path("root/images/index.json.synced")).unwrap();
    let _daemon = machine.start().await;
    eventually("the sync after a start", async || synced()).await;
}
