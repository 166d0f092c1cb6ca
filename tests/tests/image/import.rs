//! `berthd images import`, and archives that are imported at every start: images without a
//! registry.

use std::{
    fs,
    io::Write,
    process::{Output, Stdio},
};

use berth_tests::{
    Cri, Daemon, Image, Layer, Machine, binary, busybox, container, digest, finish, gzip, pod,
};
use serde_json::{Value, json};

async fn start() -> (Machine, Daemon, Cri) {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    (machine, daemon, cri)
}

/// Runs `berthd images import` with `archive` on its standard input.
fn import(machine: &Machine, archive: &[u8], arguments: &[&str]) -> Output {
    let mut command = machine.command(binary("berthd"));
    command
        .args(["images", "import", "--listen"])
        .arg(machine.path("berth.sock"))
        .args(arguments)
        .arg("-");
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A daemon that refuses the archive need not read it to its end.
    let _ = stdin.write_all(archive);
    drop(stdin);
    finish(child)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Config and tar of a busybox image that says `word`.
fn saying(word: &str) -> (Vec<u8>, Vec<u8>) {
    let layer = busybox().file("word", word.as_bytes()).bytes();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Cmd": ["sh", "-c", "cat /word; sleep 1000"] },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    });
    (config.to_string().into_bytes(), layer)
}

/// An archive as `docker save` writes it.
fn docker_archive(tags: &Value, config: &[u8], layer: &[u8]) -> Vec<u8> {
    let manifest = json!([{ "Config": "abc.json", "RepoTags": tags, "Layers": ["l1/layer.tar"] }]);
    let manifest = manifest.to_string();
    let archive = Layer::new().file("manifest.json", manifest.as_bytes()).file("abc.json", config);
    // Old versions of Docker have symbolic links where a layer repeats.
    archive
        .directory("l0", 0o755)
        .file("l0/layer.tar", layer)
        .directory("l1", 0o755)
        .symlink("l1/layer.tar", "../l0/layer.tar")
        .bytes()
}

/// An OCI image layout with one image behind an index; `names` are annotations of that.
fn layout(image: &Image, names: &[Value]) -> Layer {
    let blob = |layer: Layer, bytes: &[u8]| {
        layer.file(&format!("blobs/sha256/{}", &digest(bytes)["sha256:".len()..]), bytes)
    };
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let describe = |bytes: &[u8]| {
        json!({
            "mediaType": image.media_type,
            "digest": digest(bytes),
            "size": bytes.len(),
        })
    };
    let mut other = describe(b"of another machine");
    other["platform"] = json!({ "os": "linux", "architecture": "s390x" });
    let mut own = describe(&image.manifest);
    own["platform"] = json!({ "os": "linux", "architecture": architecture });
    let nested = json!({ "schemaVersion": 2, "manifests": [other, own] }).to_string();
    let manifests: Vec<Value> = names
        .iter()
        .map(|annotations| {
            let mut descriptor = describe(nested.as_bytes());
            descriptor["mediaType"] = "application/vnd.oci.image.index.v1+json".into();
            descriptor["annotations"] = annotations.clone();
            descriptor
        })
        .collect();
    let index = json!({ "schemaVersion": 2, "manifests": manifests }).to_string();
    let archive = Layer::new()
        .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", index.as_bytes());
    let archive = image.blobs.iter().fold(archive, |archive, bytes| blob(archive, bytes));
    blob(blob(archive, &image.manifest), nested.as_bytes())
}

/// The word that a container of the image says.
async fn says(machine: &Machine, cri: &Cri, image: &str) -> String {
    let sandbox = cri.run_pod(pod(machine, "p")).await.unwrap();
    let id = cri.run(&sandbox, container("c", image, "sleep 1000")).await.unwrap();
    let word = cri.sh(&id, "cat /word").await;
    cri.remove_pod(&sandbox).await.unwrap();
    word
}

#[tokio::test]
async fn archives_of_both_forms_become_images_that_run() {
    let (machine, _daemon, cri) = start().await;
    let (config, layer) = saying("docker");
    let archive = docker_archive(&json!(["web:1", "example.com/team/web:2"]), &config, &layer);
    for packed in
        [archive.clone(), gzip(&archive), zstd::encode_all(archive.as_slice(), 0).unwrap()]
    {
        let output = import(&machine, &packed, &[]);
        let expected =
            format!("{}  docker.io/library/web:1 example.com/team/web:2\n", digest(&config));
        assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
    }
    let image = cri.image_status("web:1").await.unwrap().unwrap();
    assert_eq!((image.id, image.repo_digests.len()), (digest(&config), 0));
    assert_eq!(image.repo_tags, ["docker.io/library/web:1", "example.com/team/web:2"]);
    assert!(!image.pinned);
    assert_eq!(says(&machine, &cri, "web:1").await, "docker");

    let tar = busybox().file("word", b"oci").bytes();
    let image = Image::new(&[(tar.clone(), gzip(&tar))], &json!({}));
    let names = [
        json!({
            "io.containerd.image.name": "registry.local/oci:1",
            "org.opencontainers.image.ref.name": "1",
        }),
        json!({ "org.opencontainers.image.ref.name": "registry.local/oci:latest" }),
    ];
    let file = machine.path("oci.tar");
    fs::write(&file, layout(&image, &names).bytes()).unwrap();
    let mut command = machine.command(binary("berthd"));
    command.args(["images", "import", "--listen"]).arg(machine.path("berth.sock")).arg(&file);
    let output = command.output().unwrap();
    assert_eq!(
        text(&output.stdout),
        format!("{}  registry.local/oci:1 registry.local/oci:latest\n", image.id)
    );
    let status = cri.image_status("registry.local/oci").await.unwrap().unwrap();
    assert!(status.repo_digests[0].starts_with("registry.local/oci@sha256:"), "{status:?}");
    assert_eq!(says(&machine, &cri, "registry.local/oci:1").await, "oci");

    // A tag alone is not an image's name.
    let nameless = layout(&image, &[json!({ "org.opencontainers.image.ref.name": "1" })]).bytes();
    let refused = import(&machine, &nameless, &[]);
    assert!(
        !refused.status.success() && text(&refused.stderr).contains("--name"),
        "{}",
        text(&refused.stderr)
    );
    let named = import(&machine, &nameless, &["--name", "given/name:3"]);
    assert_eq!(text(&named.stdout), format!("{}  docker.io/given/name:3\n", image.id));
    // The daemon's configuration pins images that have this in their names.
    import(&machine, &nameless, &["--name", "a.io/pinned/name:3"]);
    assert!(cri.image_status("given/name:3").await.unwrap().unwrap().pinned);
    machine.assert_clean().await;
}

#[tokio::test]
async fn what_is_no_archive_is_refused_with_its_reason_and_leaves_nothing() {
    let (machine, _daemon, cri) = start().await;
    let (config, layer) = saying("x");
    let tags = json!(["web:1"]);
    let whole = docker_archive(&tags, &config, &layer);
    let (other, _) = saying("y");
    let two: Value = serde_json::from_slice(&config).unwrap();
    let mut two = two;
    two["rootfs"]["diff_ids"] = json!([digest(&layer), digest(b"more")]);
    let tar = busybox().bytes();
    let image = Image::new(&[(tar.clone(), gzip(&tar))], &json!({}));
    let name = [json!({ "io.containerd.image.name": "a/b:1" })];
    let mut damaged = image.clone();
    let last = damaged.blobs[1].len() - 2;
    let mut without = image.clone();
    without.blobs.remove(0);
    // Under its digest.
    let whole_layout = layout(&image, &name).bytes();
    let at = whole_layout
        .windows(damaged.blobs[1].len())
        .position(|window| window == damaged.blobs[1])
        .unwrap();
    let mut changed = whole_layout.clone();
    changed[at + last] ^= 1;
    damaged.blobs.clear();
    // An archive of two images, of which the second is wrong: neither is imported.
    let second = json!([
        { "Config": "abc.json", "RepoTags": ["a:1"], "Layers": ["layer.tar"] },
        { "Config": "other.json", "RepoTags": ["b:1"], "Layers": ["layer.tar"] },
    ]);
    let pair =
        Layer::new().file("manifest.json", second.to_string().as_bytes()).file("abc.json", &config);
    let pair = pair.file("other.json", &other).file("layer.tar", &layer).bytes();
    let huge = Layer::new().file("index.json", &vec![b' '; (4 << 20) + 1]).bytes();
    for (archive, what) in [
        (b"no tar at all".to_vec(), "archive: "),
        (Vec::new(), "neither an OCI image layout nor a docker-archive"),
        (
            Layer::new().file("etc/passwd", b"x").bytes(),
            "neither an OCI image layout nor a docker-archive",
        ),
        (whole[..whole.len() / 2].to_vec(), "it ends within l0/layer.tar"),
        (gzip(&whole)[..5000].to_vec(), "archive: "),
        (docker_archive(&tags, &other, &layer), "wrong d"),
        (
            docker_archive(&tags, two.to_string().as_bytes(), &layer),
            "1 layers, and 2 in the config",
        ),
        (docker_archive(&tags, b"{", &layer), "abc.json is not an image's config"),
        (docker_archive(&json!(["UPPER CASE"]), &config, &layer), "UPPER CASE"),
        (docker_archive(&json!(null), &config, &layer), "--name"),
        (layout(&without, &name).bytes(), "is missing"),
        (changed, "is damaged"),
        (pair, "wrong digest"),
        (huge, "4194304 is the limit"),
    ] {
        let output = import(&machine, &archive, &[]);
        assert!(
            !output.status.success() && text(&output.stderr).contains(what),
            "{what}: {}",
            text(&output.stderr)
        );
    }
    assert!(cri.images().await.is_empty());
    let layers =
        fs::read_dir(machine.path("root/layers")).unwrap().flatten().map(|entry| entry.file_name());
    assert_eq!(layers.collect::<Vec<_>>(), ["empty"]);
    machine.assert_clean().await;
}

#[tokio::test]
async fn archives_are_there_before_anything_is_served() {
    let machine = Machine::new();
    fs::create_dir(machine.path("images")).unwrap();
    let (config, layer) = saying("preloaded");
    fs::write(machine.path("images/broken.tar"), "no tar").unwrap();
    fs::write(
        machine.path("images/web.tar.gz"),
        gzip(&docker_archive(&json!(["web:1"]), &config, &layer)),
    )
    .unwrap();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let images = cri.images().await;
    assert_eq!((images.len(), images[0].repo_tags[0].as_str()), (1, "docker.io/library/web:1"));
    assert!(images[0].pinned, "what was put there for a node without a registry stays");
    assert!(daemon.log().contains("broken.tar"), "{}", daemon.log());
    assert_eq!(says(&machine, &cri, "web:1").await, "preloaded");
    machine.assert_clean().await;
}
