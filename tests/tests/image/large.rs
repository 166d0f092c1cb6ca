//! Images with many layers, many files, or very large ones.

use std::fs;

use berth_tests::{Capability, FakeRegistry, Image, Layer, Machine, gzip, skip_without};
use serde_json::json;
use tonic::Code;

use crate::content::{made, noise, start};

#[tokio::test]
async fn an_image_of_120_layers_and_a_layer_of_100_000_files() {
    let machine = Machine::new();
    // Some disks need half a millisecond for each file.
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
    let on_disk = machine
        .output("du", &["-s", "--block-size=1", machine.path("root/layers").to_str().unwrap()]);
    let on_disk: u64 = on_disk.split_whitespace().next().unwrap().parse().unwrap();
    let inodes =
        machine.output("du", &["-s", "--inodes", machine.path("root/layers").to_str().unwrap()]);
    let inodes: u64 = inodes.split_whitespace().next().unwrap().parse().unwrap();
    let near = |counted: u64, real: u64| counted.abs_diff(real) <= real / 100;
    assert!(
        near(usage.0, on_disk) && near(usage.1, inodes),
        "{usage:?}, du says {on_disk} and {inodes}"
    );
    cri.remove_image(&id).await.unwrap();
    // The kubelet evicts a pod if there is no more room when it has the answer.
    let trash = format!("ls -A {}/trash", root.display());
    assert_eq!(machine.output("sh", &["-c", &trash]), "");
    drop(daemon);
    machine.output("umount", &[root.to_str().unwrap()]);
}

#[tokio::test]
async fn a_layer_of_a_gigabyte_is_unpacked_and_one_that_only_claims_to_be_small_is_not() {
    if skip_without(Capability::Memory) {
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
    assert!(
        error.code() == Code::FailedPrecondition && error.message().contains("became more than"),
        "{error}"
    );
}
