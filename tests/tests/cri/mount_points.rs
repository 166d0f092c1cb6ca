//! The places of mounts: containers with the same mounts share a layer of them, and nothing shows
//! that they do.

use std::{fs, path::PathBuf};

use berth_tests::{Cri, Image, Layer, Machine, bind, busybox, container, gzip, pod, ready};
use serde_json::json;

/// The shared layers.
fn shared(machine: &Machine) -> Vec<PathBuf> {
    let entries = fs::read_dir(machine.path("root/mount-points")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Runs a container with a directory of the host at `/deep/directory` and a file at `/deep/file`.
async fn run(machine: &Machine, cri: &Cri, sandbox: &str, image: &str, name: &str) -> String {
    let (directory, file) = (machine.path("directory"), machine.path("file"));
    fs::create_dir_all(&directory).unwrap();
    fs::write(&file, "a file of the host").unwrap();
    let mut config = container(name, image, "sleep 1000");
    config.mounts = vec![bind(&directory, "/deep/directory"), bind(&file, "/deep/file")];
    cri.run(sandbox, config).await.unwrap()
}

#[tokio::test]
async fn containers_with_the_same_mounts_share_their_places_and_nothing_else() {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let one = run(&machine, &cri, &sandbox, &image, "one").await;
    let other = run(&machine, &cri, &sandbox, &image, "other").await;
    assert_eq!(shared(&machine).len(), 1);
    assert_eq!(
        cri.sh(&one, "cat /deep/file; stat -c ' %a %u' /deep").await.trim(),
        "a file of the host 755 0"
    );
    let upper = |id: &str| machine.path(&format!("root/containers/{id}/upper"));
    assert!(!upper(&one).join("deep").exists(), "the container has written nothing");

    cri.sh(&one, "echo mine > /deep/mine; mkdir /deep/below").await;
    assert_eq!(cri.sh(&other, "ls /deep").await, "directory\nfile\n");
    assert!(upper(&one).join("deep/mine").exists());

    // A daemon that starts keeps what is in use.
    daemon.kill();
    let _daemon = machine.start().await;
    run(&machine, &cri, &sandbox, &image, "third").await;
    assert_eq!(shared(&machine).len(), 1);
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn what_an_image_has_comes_before_the_places_of_mounts() {
    let (machine, _daemon, cri, _) = ready().await;
    let base = busybox().bytes();
    let top = Layer::new().directory("real", 0o700).symlink("deep", "/real").bytes();
    let image = Image::new(&[(base.clone(), gzip(&base)), (top.clone(), gzip(&top))], &json!({}));
    let image = cri.pull_image(&machine, image).await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let id = run(&machine, &cri, &sandbox, &image, "c").await;
    let said = cri.sh(&id, "readlink /deep; stat -c %a /real; cat /real/file").await;
    assert_eq!(said, "/real\n700\na file of the host");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_layer_of_places_that_does_not_fit_is_not_used() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let mount = async |name: &str, source: &str| {
        let mut config = container(name, &image, "sleep 1000");
        config.mounts = vec![bind(&machine.path(source), "/place")];
        cri.run(&sandbox, config).await.unwrap()
    };
    fs::create_dir(machine.path("directory")).unwrap();
    fs::write(machine.path("directory/inside"), "").unwrap();
    fs::write(machine.path("file"), "content").unwrap();
    let first = mount("first", "directory").await;
    // The same place, and a file is to be there.
    let second = mount("second", "file").await;
    assert_eq!(cri.sh(&first, "ls /place").await, "inside\n");
    assert_eq!(cri.sh(&second, "cat /place").await, "content");
    let [layer] = &shared(&machine)[..] else { panic!("one layer") };

    // One of which a power loss has left a part, and one that is something else.
    fs::remove_dir(layer.join("place")).unwrap();
    let third = mount("third", "directory").await;
    assert_eq!(cri.sh(&third, "ls /place").await, "inside\n");
    fs::remove_dir_all(layer).unwrap();
    fs::write(layer, "no directory").unwrap();
    let fourth = mount("fourth", "directory").await;
    assert_eq!(cri.sh(&fourth, "ls /place").await, "inside\n");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn layers_of_places_that_nobody_uses_are_bounded() {
    /// As the daemon has it.
    const KEPT: usize = 64;
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    fs::create_dir(machine.path("directory")).unwrap();
    let mut running = Vec::new();
    for number in 0..KEPT + 3 {
        let mut config = container(&format!("c{number}"), &image, "sleep 1000");
        config.mounts = vec![bind(&machine.path("directory"), &format!("/place-{number}"))];
        running.push(cri.run(&sandbox, config).await.unwrap());
    }
    assert_eq!(shared(&machine).len(), KEPT + 3, "in use");
    cri.remove(&running[0]).await.unwrap();
    assert_eq!(shared(&machine).len(), KEPT + 3, "one is kept");
    daemon.kill();
    let _daemon = machine.start().await;
    cri.remove_pod(&sandbox).await.unwrap();
    assert_eq!(shared(&machine).len(), KEPT);
    machine.assert_clean().await;
}
