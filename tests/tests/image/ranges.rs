//! Large blobs: several ranges at once, and registries that are slow or serve no ranges.

use std::{
    fs,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use berth_tests::{FakeRegistry, Response, digest};
use tonic::Code;

use crate::content::{MIB, assert_all_named, made, names, ranges_of, start};

#[tokio::test]
async fn a_large_blob_comes_in_several_ranges_at_once() {
    let (machine, _daemon, cri) = start().await;
    let made = made(&[41 * MIB, MIB]);
    let large = digest(&made.image.blobs[0]);
    // The response for the whole blob is slow, and no range is answered before three have been
    // requested: a client with one connection would not finish.
    let waiting = Arc::new((Mutex::new(0), Condvar::new()));
    let path = large.clone();
    let blob = made.image.blobs[0].clone();
    let registry = FakeRegistry::start(&machine, made.image.clone(), move |request| {
        if !request.path.ends_with(&path) {
            return None;
        }
        let Some((start, end)) = request.range(blob.len()) else {
            let headers = vec![("accept-ranges".to_owned(), "bytes".to_owned())];
            return Some(Response {
                status: 200,
                headers,
                body: blob.clone(),
                pace: Some(120 << 10),
                ..Response::default()
            });
        };
        let (count, more) = &*waiting;
        let mut asked_for = count.lock().unwrap();
        *asked_for += 1;
        let own = *asked_for;
        more.notify_all();
        let waited = more
            .wait_timeout_while(asked_for, Duration::from_secs(10), |count| *count < 3)
            .unwrap();
        assert!(!waited.1.timed_out(), "fewer than three ranges at once");
        // One of the ranges breaks off.
        let cut_after = (own == 3).then_some(MIB);
        Some(Response {
            status: 206,
            body: blob[start..end].to_vec(),
            cut_after,
            ..Response::default()
        })
    });
    cri.pull(&format!("{}/a:1", registry.host)).await.unwrap();
    made.assert_whole(&machine);
    let ranges = ranges_of(&registry, &large);
    assert!(ranges.len() >= 8 && ranges.iter().skip(1).all(Option::is_some), "{ranges:?}");
    assert_all_named(&machine);
    assert!(
        names(&machine, "images/pulls").is_empty() && names(&machine, "images/partial").is_empty()
    );
}

#[tokio::test]
async fn a_registry_without_ranges_serves_large_blobs_and_broken_ones() {
    let (machine, _daemon, cri) = start().await;
    let made = made(&[20 * MIB]);
    let path = digest(&made.image.blobs[0]);
    let blob = made.image.blobs[0].clone();
    let asked_before = AtomicUsize::new(0);
    let registry = FakeRegistry::start(&machine, made.image.clone(), move |request| {
        let first = request
            .path
            .ends_with(&path)
            .then(|| asked_before.fetch_add(1, Ordering::SeqCst) == 0)?;
        Some(Response {
            status: 200,
            body: blob.clone(),
            cut_after: first.then_some(9 * MIB),
            ..Response::default()
        })
    });
    cri.pull(&format!("{}/a:1", registry.host)).await.unwrap();
    made.assert_whole(&machine);
}

#[tokio::test]
async fn a_mirror_that_only_trickles_is_left_for_the_next_and_alone_it_is_an_error() {
    let (machine, daemon, cri) = start().await;
    let made = made(&[MIB]);
    let path = digest(&made.image.blobs[0]);
    let blob = made.image.blobs[0].clone();
    let slow = FakeRegistry::start(&machine, made.image.clone(), move |request| {
        request.path.ends_with(&path).then(|| Response {
            status: 200,
            body: blob.clone(),
            pace: Some(1),
            ..Response::default()
        })
    });
    let error = cri.pull(&format!("{}/a:1", slow.host)).await.unwrap_err();
    assert!(error.code() == Code::Unknown && error.message().contains("stalled"), "{error}");
    let good = FakeRegistry::start(&machine, made.image.clone(), |_| None);
    let directory = machine.path("certs.d/registry.example");
    fs::create_dir_all(&directory).unwrap();
    let hosts = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]\n[host.\"http://{}\"]\n",
        slow.host, good.host
    );
    fs::write(directory.join("hosts.toml"), hosts).unwrap();
    cri.pull("registry.example/a:1").await.unwrap();
    made.assert_whole(&machine);
    assert!(daemon.log().contains("stalled"), "{}", daemon.log());
}
