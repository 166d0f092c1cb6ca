//! Images to pull: one of this machine's own files, and one of many layers.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use berth_tests::{Image, Layer, gzip};
use serde_json::json;

/// What the layers of the large image have at most, before the last file.
const SIZES: [usize; 5] = [200 << 20, 50 << 20, 50 << 20, 50 << 20, 50 << 20];

pub(crate) struct Tree {
    pub(crate) image: Image,
    pub(crate) tars: Vec<Vec<u8>>,
}

/// An image of files of this machine: a large layer and four small ones.
pub(crate) fn tree() -> Result<Tree> {
    let mut files = Vec::new();
    collect(Path::new("/usr/lib"), &mut files);
    collect(Path::new("/usr/share"), &mut files);
    let mut files = files.into_iter();
    let mut tars = Vec::new();
    for limit in SIZES {
        let mut layer = Layer::new();
        let mut size = 0;
        while size < limit {
            let Some(path) = files.next() else { break };
            let name = path.strip_prefix("/")?.display().to_string();
            let Ok(content) = fs::read(&path) else { continue };
            // Longer names need a header of another type, and there are enough short ones.
            if name.len() < 100 {
                size += content.len();
                layer = layer.file(&name, &content);
            }
        }
        tars.push(layer.bytes());
    }
    Ok(Tree { image: packed(&tars), tars })
}

/// An image of forty layers with a few files each, which differ for each `number`.
pub(crate) fn many(number: usize) -> Image {
    let content = format!("{number:020}").repeat(1000);
    let layer = |layer: usize| {
        let file =
            |tar: Layer, file| tar.file(&format!("layer{layer}/file{file}"), content.as_bytes());
        (0..10).fold(Layer::new(), file)
    };
    packed(&(0..40).map(|index| layer(index).bytes()).collect::<Vec<_>>())
}

fn packed(tars: &[Vec<u8>]) -> Image {
    let layers: Vec<_> = tars.iter().map(|tar| (tar.clone(), gzip(tar))).collect();
    Image::new(&layers, &json!({ "Cmd": ["true"] }))
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(directory).into_iter().flatten().flatten().collect();
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(&entry.path(), files),
            Ok(kind) if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
}
