//! `berthd images check` and `export`: what is on disk is compared with what was pulled, and other
//! tools can read what is exported.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    os::unix::fs::{FileExt, MetadataExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use berth_tests::{
    Cri, Daemon, DockerRegistry, Entry, FakeRegistry, Image, Layer, Machine, binary, busybox,
    container, digest, eventually, gzip, pod,
};
use serde_json::json;
use tar::EntryType;

async fn start() -> (Machine, Daemon, Cri) {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    (machine, daemon, cri)
}

fn images(machine: &Machine, arguments: &[&str]) -> Output {
    let mut command = machine.command(binary("berthd"));
    command
        .args(["images", arguments[0], "--listen"])
        .arg(machine.path("berth.sock"))
        .args(&arguments[1..]);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A tar with everything that one may have: symbolic and hard links, whiteouts, odd owners, long
/// names, extended attributes, empty files, and files whose parents are left out.
fn everything() -> Vec<Vec<u8>> {
    let long = format!("d/{}", "x".repeat(90));
    let attribute = b"31 SCHILY.xattr.user.a=b c d e\n";
    let base = Layer::new()
        .directory("d", 0o750)
        .file("d/empty", b"")
        .file("d/block", &[7; 512])
        .file("d/odd", &[8; 100_001])
        .file(&long, b"long")
        .hard_link("d/hard", "d/odd")
        .symlink("soft", "d")
        .file("soft/through", b"a symbolic link")
        .entry(&Entry { name: "suid", mode: 0o4755, owner: 77, content: b"s", ..Entry::default() })
        .entry(&Entry { kind: EntryType::Fifo, name: "fifo", ..Entry::default() })
        .entry(&Entry {
            kind: EntryType::XHeader,
            name: "x",
            content: attribute,
            ..Entry::default()
        })
        .file("with-attribute", b"x");
    let upper = Layer::new()
        .file("d/.wh.empty", b"")
        .file("d/.wh..wh..opq", b"")
        .file("e/parent/left/out", b"3");
    let mut padded = Layer::new().file("padded", b"p").bytes();
    padded.resize(padded.len() + 9000, 0);
    vec![base.bytes(), upper.bytes(), Layer::new().bytes(), padded]
}

fn made(tars: &[Vec<u8>]) -> Image {
    let layers: Vec<(Vec<u8>, Vec<u8>)> = tars.iter().map(|tar| (tar.clone(), gzip(tar))).collect();
    Image::new(&layers, &json!({ "Cmd": ["x"], "Env": ["A=b"] }))
}

/// The content of a tar, by name.
fn files(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(fs::File::open(archive).unwrap());
    let content = |mut entry: tar::Entry<'_, fs::File>| {
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().display().to_string(), bytes)
    };
    archive.entries().unwrap().map(|entry| content(entry.unwrap())).collect()
}

/// The directory of the layer that has `file`.
fn layer_with(machine: &Machine, file: &str) -> PathBuf {
    let mut layers =
        fs::read_dir(machine.path("root/layers")).unwrap().flatten().map(|entry| entry.path());
    layers.find(|path| path.join("fs").join(file).symlink_metadata().is_ok()).unwrap()
}

#[tokio::test]
async fn an_exported_image_has_the_layers_that_were_pulled_bit_by_bit() {
    let (machine, _daemon, cri) = start().await;
    let tars = everything();
    let image = made(&tars);
    let registry = FakeRegistry::start(&machine, image.clone(), |_| None);
    let names =
        ["team/a:1", "team/a:2", "b:latest"].map(|name| format!("{}/{name}", registry.host));
    for name in &names {
        cri.pull(name).await.unwrap();
    }
    let archive = machine.path("out.tar");
    let exported =
        images(&machine, &["export", "-o", archive.to_str().unwrap(), &names[0], &names[2]]);
    assert!(exported.status.success(), "{}", text(&exported.stderr));
    let found = files(&archive);
    for tar in tars.iter().chain([image.blobs.last().unwrap()]) {
        let path = format!("blobs/{}", digest(tar).replace(':', "/"));
        let bytes = found.get(&path).unwrap_or_else(|| panic!("{path} is missing"));
        assert!(bytes == tar, "{path} differs");
    }
    let docker: serde_json::Value = serde_json::from_slice(&found["manifest.json"]).unwrap();
    assert_eq!(docker[0]["RepoTags"], json!([names[2], names[0]]));

    // Another tool reads both forms of archive, and what it writes is the same image.
    for source in ["oci-archive", "docker-archive"] {
        let inspect = |what: &[&str]| {
            let output = Command::new("skopeo").args(what).output().expect("skopeo is installed");
            assert!(output.status.success(), "{source}: {}", text(&output.stderr));
            text(&output.stdout)
        };
        let from = format!("{source}:{}:{}", archive.display(), names[0]);
        assert!(inspect(&["inspect", "--config", &from]).contains("\"A=b\""));
        let copy = machine.path(&format!("{source}.tar"));
        let to = format!("docker-archive:{}:copy/of:{source}", copy.display());
        inspect(&["copy", "--insecure-policy", &from, &to]);
        let imported = images(&machine, &["import", copy.to_str().unwrap()]);
        assert!(imported.status.success(), "{}", text(&imported.stderr));
        let status = cri.image_status(&format!("copy/of:{source}")).await.unwrap().unwrap();
        assert_eq!((status.id, source), (image.id.clone(), source));
    }
    // Into a pipe, and by the image's id: all of its names are in the archive.
    let mut export = machine.command(binary("berthd"));
    export.args(["images", "export", "--listen"]).arg(machine.path("berth.sock")).arg(&image.id);
    let mut export = export.stdout(Stdio::piped()).spawn().unwrap();
    let mut import = machine.command(binary("berthd"));
    import.args(["images", "import", "--listen"]).arg(machine.path("berth.sock")).arg("-");
    let imported = import.stdin(export.stdout.take().unwrap()).output().unwrap();
    assert!(
        export.wait().unwrap().success() && imported.status.success(),
        "{}",
        text(&imported.stderr)
    );
    assert_eq!(
        text(&imported.stdout).split_whitespace().count(),
        1 + 5,
        "{}",
        text(&imported.stdout)
    );
    let unknown =
        images(&machine, &["export", "-o", machine.path("no.tar").to_str().unwrap(), "not/there"]);
    assert!(
        !unknown.status.success()
            && text(&unknown.stderr).contains("not/there")
            && !machine.path("no.tar").exists()
    );
    machine.assert_clean().await;
}

#[tokio::test]
async fn what_is_damaged_is_found_and_pulled_again() {
    let (machine, _daemon, cri) = start().await;
    let tars = everything();
    let registry = FakeRegistry::start(&machine, made(&tars), |_| None);
    let name = format!("{}/a:1", registry.host);
    let id = cri.pull(&name).await.unwrap();
    let other = FakeRegistry::start(&machine, Image::busybox(), |_| None);
    let busybox = format!("{}/busybox:1", other.host);
    cri.pull(&busybox).await.unwrap();
    let whole = images(&machine, &["check"]);
    let lines =
        |output: &Output| text(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>();
    assert!(whole.status.success(), "{}{}", text(&whole.stdout), text(&whole.stderr));
    assert!(
        lines(&whole).len() == 2
            && lines(&whole).iter().all(|line| line.starts_with("whole     sha256:"))
    );

    let files = layer_with(&machine, "d/odd").join("fs");
    let top = layer_with(&machine, "padded");
    for (what, told) in [
        ("a changed byte", "files are not what they were"),
        ("a file cut short", "d/block is not the file"),
        ("a file gone", "d/empty cannot be opened"),
        ("a link in its place", "d/block cannot be opened"),
        ("no record", "cannot be verified"),
        ("a damaged record", "the record of the tar"),
        ("a damaged config", "is damaged"),
    ] {
        let blob = machine.path("root/images/blobs/sha256").join(&id["sha256:".len()..]);
        match what {
            "a changed byte" => {
                fs::write(files.join("d/odd"), [&[9; 100_000][..], &[7]].concat()).unwrap()
            }
            "a file cut short" => fs::File::options()
                .write(true)
                .open(files.join("d/block"))
                .unwrap()
                .set_len(3)
                .unwrap(),
            "a file gone" => fs::remove_file(files.join("d/empty")).unwrap(),
            "a link in its place" => {
                fs::remove_file(files.join("d/block")).unwrap();
                symlink("/etc/passwd", files.join("d/block")).unwrap();
            }
            "no record" => fs::remove_file(top.join("tar.zst")).unwrap(),
            "a damaged record" => {
                fs::write(top.join("tar.zst"), [0x28, 0xb5, 0x2f, 0xfd, 0, 1, 2]).unwrap()
            }
            _ => fs::write(&blob, "{}").unwrap(),
        }
        let checked = images(&machine, &["check"]);
        assert!(text(&checked.stdout).contains(told), "{what}: {}", text(&checked.stdout));
        if what == "no record" {
            assert!(checked.status.success());
            continue;
        }
        assert!(
            !checked.status.success() && text(&checked.stderr).contains("1 damaged images"),
            "{what}"
        );
        let repaired = images(&machine, &["check", "--repair"]);
        assert!(repaired.status.success(), "{what}: {}", text(&repaired.stdout));
        assert!(
            lines(&repaired)
                .iter()
                .any(|line| line.starts_with("repaired  ") && line.contains(&name)),
            "{what}"
        );
        let again = images(&machine, &["check"]);
        assert!(
            lines(&again).len() == 2 && again.status.success(),
            "{what}: {}",
            text(&again.stdout)
        );
    }
    assert_eq!(fs::read(files.join("d/odd")).unwrap(), [8; 100_001]);
    machine.assert_clean().await;
}

#[tokio::test]
async fn what_cannot_be_repaired_is_left_and_said() {
    let (machine, _daemon, cri) = start().await;
    let tar = busybox().bytes();
    let registry = FakeRegistry::start(&machine, made(&[tar]), |_| None);
    let name = format!("{}/a:1", registry.host);
    cri.pull(&name).await.unwrap();
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let id = cri.run(&sandbox, container("c", &name, "exec sleep 1000")).await.unwrap();
    let files = layer_with(&machine, "etc/passwd").join("fs");
    fs::write(files.join("etc/group"), "x").unwrap();
    let repair = || {
        let output = images(&machine, &["check", "--repair"]);
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    };
    let (repaired, said) = repair();
    assert!(
        !repaired
            && said.contains("a container uses it")
            && said.contains("1 damaged images are left"),
        "{said}"
    );
    let export =
        images(&machine, &["export", "-o", machine.path("x.tar").to_str().unwrap(), &name]);
    assert!(
        !export.status.success() && text(&export.stderr).contains("--repair"),
        "{}",
        text(&export.stderr)
    );
    cri.remove_pod(&sandbox).await.unwrap();
    drop(id);
    // The image is not listed any more, so that no container starts from it. The next pull that
    // succeeds repairs it.
    drop(registry);
    let hosts = machine.path("certs.d").join(name.split('/').next().unwrap());
    fs::create_dir_all(&hosts).unwrap();
    fs::write(hosts.join("hosts.toml"), "server = \"http://127.0.0.1:1\"\n").unwrap();
    let (repaired, said) = repair();
    assert!(!repaired && said.contains("not repaired: "), "{said}");
    let sandbox = cri.run_pod(pod(&machine, "q")).await.unwrap();
    let refused = cri.create(&sandbox, container("c", &name, "true")).await.unwrap_err();
    assert!(!refused.message().is_empty(), "{refused}");
    fs::remove_dir_all(&hosts).unwrap();
    cri.pull(&name).await.unwrap();
    assert!(repair().0);
    let id = cri.run(&sandbox, container("c", &name, "exec sleep 1000")).await.unwrap();
    assert!(cri.sh(&id, "cat /etc/group").await.contains("root"));
    cri.remove_pod(&sandbox).await.unwrap();

    // A tar that has a name twice can be unpacked, but not be reassembled from the files.
    let twice = Layer::new().file("a", b"first").file("a", b"second").bytes();
    let registry = FakeRegistry::start(&machine, made(&[twice]), |_| None);
    let name = format!("{}/twice:1", registry.host);
    cri.pull(&name).await.unwrap();
    let checked = images(&machine, &["check"]);
    assert!(
        checked.status.success() && text(&checked.stdout).contains("cannot be verified"),
        "{}",
        text(&checked.stdout)
    );
    let export =
        images(&machine, &["export", "-o", machine.path("x.tar").to_str().unwrap(), &name]);
    assert!(
        !export.status.success() && text(&export.stderr).contains("one name twice"),
        "{}",
        text(&export.stderr)
    );
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_sparse_file_keeps_its_holes_and_its_tar() {
    const MIB: u64 = 1 << 20;
    let (machine, _daemon, cri) = start().await;
    // More segments than one header has room for, and a hole at the beginning and at the end.
    let source = fs::File::create(machine.path("sparse")).unwrap();
    source.set_len(80 * MIB).unwrap();
    for at in 1..=60 {
        source.write_all_at(&[at as u8; 4096], at * MIB).unwrap();
    }
    let directory = machine.dir.path().to_str().unwrap();
    let archive = machine.path("sparse.tar");
    for form in ["--format=gnu", "--sparse-version=0.1", "--sparse-version=1.0"] {
        let format = if form.starts_with("--format") { form } else { "--format=posix" };
        let output = ["-cf", archive.to_str().unwrap(), "sparse"];
        machine.output(
            "tar",
            &[&[format, form, "--sparse", "--directory", directory][..], &output].concat(),
        );
        let tar = fs::read(&archive).unwrap();
        assert!(tar.len() < 1 << 20, "GNU tar found the holes: {}", tar.len());
        let registry = FakeRegistry::start(&machine, made(std::slice::from_ref(&tar)), |_| None);
        let name = format!("{}/sparse:1", registry.host);
        let (before, _) = cri.image_fs().await;
        cri.pull(&name).await.unwrap();
        let layer = layer_with(&machine, "sparse");
        assert_eq!(names(&layer.join("fs")), ["sparse"], "{form}");
        let found = fs::metadata(layer.join("fs/sparse")).unwrap();
        assert!(found.len() == 80 * MIB && found.blocks() * 512 < MIB, "{form}: {found:?}");
        let same =
            fs::read(layer.join("fs/sparse")).unwrap() == fs::read(machine.path("sparse")).unwrap();
        assert!(same, "{form}: its content differs");
        let used = cri.image_fs().await.0 - before;
        assert!((60 * 4096..MIB).contains(&used), "{form}: counted are {used} bytes");
        let record = fs::metadata(layer.join("tar.zst")).unwrap();
        assert!(
            record.len() < 8192,
            "{form}: the data is in the file, and not in the {} bytes beside it",
            record.len()
        );
        let checked = images(&machine, &["check"]);
        let whole = checked.status.success() && text(&checked.stdout).starts_with("whole ");
        assert!(whole, "{form}: {}", text(&checked.stdout));
        let out = machine.path("out.tar");
        let exported = images(&machine, &["export", "-o", out.to_str().unwrap(), &name]);
        assert!(exported.status.success(), "{form}: {}", text(&exported.stderr));
        let again = &files(&out)[&format!("blobs/{}", digest(&tar).replace(':', "/"))];
        assert!(*again == tar, "{form}: the layer differs");
        assert_damage_is_found(&machine, &layer.join("fs/sparse"));
        cri.remove_image(&name).await.unwrap();
        eventually("the layer is gone", async || !layer.exists()).await;
    }
}

fn names(directory: &Path) -> Vec<String> {
    fs::read_dir(directory)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

/// Damage within the data of a sparse file of 80 MiB, and at its end.
fn assert_damage_is_found(machine: &Machine, file: &Path) {
    const MIB: u64 = 1 << 20;
    let damaged = fs::File::options().write(true).open(file).unwrap();
    damaged.write_all_at(&[0xff], 7 * MIB + 1).unwrap();
    let checked = images(machine, &["check"]);
    assert!(
        !checked.status.success() && text(&checked.stdout).starts_with("damaged"),
        "{}",
        text(&checked.stdout)
    );
    // In this case the data is right, and the hole at the end is missing.
    damaged.write_all_at(&[7], 7 * MIB + 1).unwrap();
    damaged.set_len(60 * MIB + 4096).unwrap();
    let checked = images(machine, &["check"]);
    assert!(
        text(&checked.stdout).contains("is not the file of 83886080 bytes"),
        "{}",
        text(&checked.stdout)
    );
}

#[tokio::test]
async fn images_that_other_tools_make_are_pulled_run_and_verified() {
    let (machine, _daemon, cri) = start().await;
    let registry = DockerRegistry::start(&machine).await;
    let layout = machine.path("layout");
    let image = format!("{}:x", layout.display());
    let tool = |program: &str, arguments: &[&str]| machine.output(program, arguments);
    tool("umoci", &["init", "--layout", layout.to_str().unwrap()]);
    tool("umoci", &["new", "--image", &image]);
    let busybox = ["/usr/bin/busybox", "/bin/busybox"]
        .into_iter()
        .find(|path| fs::exists(path).unwrap())
        .unwrap();
    tool("umoci", &["insert", "--image", &image, busybox, "/bin/busybox"]);
    // A layer with the names, links, times and owners of a real distribution, and one that changes
    // it.
    tool("umoci", &["insert", "--image", &image, "/etc", "/distribution"]);
    tool("umoci", &["insert", "--image", &image, "--whiteout", "/distribution/passwd"]);
    tool(
        "umoci",
        &["config", "--image", &image, "--config.cmd", "/bin/busybox", "--config.cmd", "true"],
    );
    for (tag, options) in [
        ("oci", &["--format", "oci"][..]),
        ("v2s2", &["--format", "v2s2"]),
        (
            "zstd",
            &["--format", "oci", "--dest-compress-format", "zstd", "--dest-compress-level", "3"],
        ),
    ] {
        let from = format!("oci:{image}");
        let to = format!("docker://{}/made:{tag}", registry.host);
        let copy =
            [&["copy", "--insecure-policy", "--dest-tls-verify=false"], options, &[&from, &to]]
                .concat();
        tool("skopeo", &copy);
        let name = format!("{}/made:{tag}", registry.host);
        cri.pull(&name).await.unwrap();
        let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
        let mut config = container("c", &name, "");
        config.command = vec!["/bin/busybox".into(), "sleep".into(), "1000".into()];
        let id = cri.run(&sandbox, config).await.unwrap();
        let shell = |script: &'static str| ["/bin/busybox", "sh", "-c", script];
        let found = cri
            .exec(&id, &shell("cat /distribution/hostname; ls /distribution/passwd; true"), 0)
            .await
            .unwrap();
        assert_eq!(text(&found.stdout), fs::read_to_string("/etc/hostname").unwrap(), "{tag}");
        cri.remove_pod(&sandbox).await.unwrap();
        let checked = images(&machine, &["check"]);
        let whole = text(&checked.stdout).lines().all(|line| line.starts_with("whole "));
        assert!(whole && checked.status.success(), "{tag}: {}", text(&checked.stdout));
        cri.remove_image(&name).await.unwrap();
    }
    machine.assert_clean().await;
}
