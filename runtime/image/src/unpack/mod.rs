//! Unpacks the blob of one layer into files in the form that overlayfs needs. `unpacker` runs this
//! in a process of its own.
//!
//! ```text
//! blob --> inflate: decompress, sha256 of the tar              (thread one)
//!             |  buffers of 128 KiB, at most 8 of them queued
//!             v
//!          extract: entries to files, tar-split beside them    (thread two)
//! ```
//!
//! A layer is hostile input. These are the classes of vulnerabilities that other runtimes had here,
//! and what prevents them:
//!
//! - Names and links that lead out of the layer (CVE-2021-32760, CVE-2025-47290): openat2(2)
//!   resolves names below the layer's own directory, and files are created relative to the
//!   descriptor of their directory (`entries`).
//! - Bombs, either compressed data or sparse files (CVE-2023-25153, CVE-2025-58183): sizes, ratios,
//!   headers and segments are limited (`expansion`, `sparse`, `extract`).
//! - Extended attributes that control overlayfs: they are not taken from a tar (`metadata`).
//!
//! Memory is bounded as well: the queued buffers, a decompressor, one tar header, and a path and
//! time for each directory.

mod contents;
mod entries;
mod expansion;
mod extract;
mod file;
mod implied;
mod inflate;
mod metadata;
mod names;
mod pipeline;
mod reassemble;
mod refuse;
mod sparse;
mod tar_split;
mod whiteout;

pub(super) use self::{
    contents::{Contents, Device, DeviceKind, Extracted, Unpacked},
    expansion::Expansion,
    file::{file_diff_id, unpack_file},
    implied::inherit_attributes,
    names::relative_path,
    pipeline::unpack,
    reassemble::ReassembledTar,
};
