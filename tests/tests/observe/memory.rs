//! What memory the daemon keeps after requests that needed much of it.

use std::fs;

use berth_proto::v1;
use berth_tests::{
    Cri, DockerRegistry, Image, Layer, Machine, container, eventually, gzip, pod, ready,
    without_load,
};
use serde_json::json;
use tonic::Code;

const LARGE: usize = 15 << 20;
/// Each request in flight has a buffer and a message, and perhaps an arena of malloc.
const AT_ONCE: usize = 4;

/// Anonymous memory of a process, in bytes.
fn anonymous(pid: i32) -> usize {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let kibibytes =
        text.lines().find_map(|line| line.strip_prefix("Anonymous:")?.strip_suffix("kB"));
    kibibytes.unwrap().trim().parse::<usize>().unwrap() << 10
}

/// Layers of a large image, and their size.
const LAYERS: usize = 6;
const LAYER: usize = 16 << 20;
/// What pulls may leave behind: connections that are kept for the next one, and buffers that malloc
/// has not given back.
const LEFT_BY_PULLS: usize = 10 << 20;

/// A request of 15 MiB that is read and refused.
async fn create_large(cri: Cri, sandbox: String) {
    let mut config = container("large", "no/such/image", "");
    config.annotations.insert("large".into(), "x".repeat(LARGE));
    assert_eq!(cri.create(&sandbox, config).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn memory_of_large_messages_is_given_back() {
    let _alone = without_load().await;
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let id = cri.run(&sandbox, container("c", &image, "exec sleep 1000")).await.unwrap();
    let before = anonymous(daemon.pid());
    for _ in 0..3 {
        let all: Vec<_> = (0..AT_ONCE)
            .map(|_| tokio::spawn(create_large(cri.clone(), sandbox.clone())))
            .collect();
        for one in all {
            one.await.unwrap();
        }
        let answer: v1::ExecSyncResponse =
            cri.exec(&id, &["head", "-c", "15000000", "/dev/zero"], 20).await.unwrap();
        assert_eq!(answer.stdout.len(), 15_000_000);
    }
    eventually("the memory is given back", async || anonymous(daemon.pid()) < before + LARGE).await;
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// An image with layers of bytes that hardly compress.
fn large(number: usize) -> Image {
    let mut state = number as u32 + 1;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(LAYER)
    .collect();
    let layers: Vec<_> = (0..LAYERS)
        .map(|layer| Layer::new().file(&format!("{number}-{layer}"), &content).bytes())
        .map(|tar| (tar.clone(), gzip(&tar)))
        .collect();
    Image::new(&layers, &json!({ "Cmd": ["x"] }))
}

#[tokio::test]
async fn memory_of_pulls_is_given_back_after_any_number_of_them() {
    let _alone = without_load().await;
    let machine = Machine::new();
    let registry = DockerRegistry::start(&machine).await;
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let small = registry.push(&machine, "small", "1", &Image::busybox());
    cri.pull(&small).await.unwrap();
    let before = anonymous(daemon.pid());
    for number in 0..3 {
        let name = registry.push(&machine, "large", &number.to_string(), &large(number));
        cri.pull(&name).await.unwrap();
        cri.remove_image(&name).await.unwrap();
    }
    eventually("the memory is given back", async || {
        anonymous(daemon.pid()) < before + LEFT_BY_PULLS
    })
    .await;
}
