//! The files of the Container Device Interface 1.1: what they may say, and the edits that they ask
//! for. <https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md>

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use berth_base::error::{Error, Result};
use berth_shim::spec::Hooks;
use serde::Deserialize;

/// Bytes of a file. That of a GPU has tens of kilobytes.
const MAX_FILE: u64 = 4 << 20;

/// One file: a kind, which is `vendor/class`, and devices of it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Spec {
    cdi_version: String,
    pub kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    pub devices: Vec<Device>,
    /// For every container that gets one of the devices.
    #[serde(default)]
    pub container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub name: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub container_edits: Edits,
}

/// What containers get with their devices.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Edits {
    /// `NAME=value`.
    pub env: Vec<String>,
    pub device_nodes: Vec<DeviceNode>,
    pub mounts: Vec<Mount>,
    hooks: Vec<Hook>,
    #[serde(rename = "additionalGids")]
    pub additional_gids: Vec<u32>,
    // Known, so that the error is not about the file but about berth.
    intel_rdt: Option<serde::de::IgnoredAny>,
    net_devices: Vec<serde::de::IgnoredAny>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct DeviceNode {
    /// The path in the container, and on the host unless `host_path` is given.
    pub path: PathBuf,
    pub host_path: Option<PathBuf>,
    /// `b`, `c` or `u`. If it is absent, it is that of the host's node, as are the two numbers.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub file_mode: Option<u32>,
    /// Some of `r`, `w` and `m`; absent: all.
    pub permissions: Option<String>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Mount {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    #[serde(rename = "type")]
    pub kind: String,
    /// Options of mount(8).
    pub options: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Hook {
    hook_name: String,
    path: PathBuf,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    /// Seconds.
    timeout: Option<u32>,
}

impl Edits {
    /// Adds the edits of the device `name`.
    pub(super) fn add(&mut self, name: &str, more: &Self) -> Result<()> {
        if more.intel_rdt.is_some() {
            return Err(unsupported(name, "intelRdt"));
        }
        if !more.net_devices.is_empty() {
            return Err(unsupported(name, "netDevices"));
        }
        let is_wrong = |text: &&String| text.split_once('=').is_none_or(|(key, _)| key.is_empty());
        if let Some(wrong) = more.env.iter().find(is_wrong) {
            let text = format!("CDI device {name:?}: {wrong:?} is not NAME=value");
            return Err(Error::invalid(text));
        }
        // Appended in the order of the devices: if two of them set a variable, the later one wins.
        self.env.extend_from_slice(&more.env);
        self.device_nodes.extend_from_slice(&more.device_nodes);
        self.mounts.extend_from_slice(&more.mounts);
        self.hooks.extend_from_slice(&more.hooks);
        self.additional_gids.extend_from_slice(&more.additional_gids);
        Ok(())
    }

    /// The hooks, by the moment at which they run.
    ///
    /// # Errors
    /// `InvalidArgument` for an unknown moment, and for a program whose path is not absolute.
    pub(crate) fn hooks(&self) -> Result<Hooks> {
        let mut hooks = Hooks::default();
        for hook in &self.hooks {
            let list = match hook.hook_name.as_str() {
                "prestart" => &mut hooks.prestart,
                "createRuntime" => &mut hooks.create_runtime,
                "createContainer" => &mut hooks.create_container,
                "startContainer" => &mut hooks.start_container,
                "poststart" => &mut hooks.poststart,
                "poststop" => &mut hooks.poststop,
                name => return Err(Error::invalid(format!("CDI: there is no hook {name:?}"))),
            };
            if !hook.path.is_absolute() {
                let path = hook.path.display().to_string();
                let text = format!("CDI: the path of the hook {path:?} is not absolute");
                return Err(Error::invalid(text));
            }
            list.push(berth_shim::spec::Hook {
                path: hook.path.clone(),
                args: hook.args.clone(),
                env: hook.env.clone(),
                timeout: hook.timeout,
            });
        }
        Ok(hooks)
    }
}

fn unsupported(name: &str, what: &str) -> Error {
    Error::invalid(format!("CDI device {name:?} wants {what}, which berth cannot do"))
}

/// Reads one file.
pub(super) fn read(path: &Path) -> std::result::Result<Spec, String> {
    parse(&read_bounded(path)?)
}

/// The files of a directory that count: `*.json` and `*.yaml`, by name. None if there is no such
/// directory.
pub(super) fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| {
        path.extension().is_some_and(|extension| extension == "json" || extension == "yaml")
    });
    files.sort_unstable();
    Ok(files)
}

fn read_bounded(path: &Path) -> std::result::Result<String, String> {
    let mut text = String::new();
    // Without O_NONBLOCK, opening a FIFO would wait for a writer (fifo(7)).
    let opened = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let read = opened.and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
    match read {
        Err(error) => Err(error.to_string()),
        Ok(length) if length as u64 > MAX_FILE => {
            Err(format!("larger than {} MiB", MAX_FILE >> 20))
        }
        Ok(_) => Ok(text),
    }
}

/// Parses YAML, which JSON is too. A number with a zero in front is octal, as in YAML 1.1 and in
/// the Go library that other runtimes read these files with: modes are written so.
fn parse(text: &str) -> std::result::Result<Spec, String> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let spec: Spec =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
    // A later major version may mean something else by the same keys.
    if !matches!(spec.cdi_version.split('.').collect::<Vec<_>>()[..], ["0" | "1", _, _]) {
        return Err(format!("cdiVersion {:?} is not known", spec.cdi_version));
    }
    for Device { name, .. } in &spec.devices {
        check_name(&format!("{}={name}", spec.kind)).map_err(|error| error.message)?;
    }
    Ok(spec)
}

/// Checks a qualified name, `vendor/class=name`.
///
/// # Errors
/// `InvalidArgument` if it is not one.
pub(super) fn check_name(name: &str) -> Result<()> {
    let valid = name.split_once('=').and_then(|(kind, device)| {
        let (vendor, class) = kind.split_once('/')?;
        let kind_is_valid = is_word(vendor, "_-.") && is_word(class, "_-.");
        // Vendor and class begin with a letter, devices may have numbers for names.
        let begins_with_letter = |text: &str| text.starts_with(|c: char| c.is_ascii_alphabetic());
        let begins_well = begins_with_letter(vendor) && begins_with_letter(class);
        Some(kind_is_valid && begins_well && is_word(device, "_-.:"))
    });
    match valid {
        Some(true) => Ok(()),
        _ => Err(Error::invalid(format!("CDI device {name:?} is not vendor/class=name"))),
    }
}

/// Whether `text` begins and ends with a letter or digit, and has only those and some of `between`
/// in it.
fn is_word(text: &str, between: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.ends_with(|last: char| last.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || between.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_with_a_zero_in_front() {
        let file = |name: &str, mode: &str| {
            format!(
                "{{cdiVersion: 0.6.0, kind: vendor.com/gpu, devices: [{{name: {name}, \
                 containerEdits: {{deviceNodes: [{{path: /dev/gpu0, fileMode: {mode}}}]}}}}]}}"
            )
        };
        for (written, mode) in
            [("432", 0o660), ("0640", 0o640), ("0o640", 0o640), ("0", 0), ("00", 0)]
        {
            let spec = parse(&file("a", written)).unwrap();
            let node = &spec.devices[0].container_edits.device_nodes[0];
            assert_eq!(node.file_mode, Some(mode), "{written}");
        }
        assert!(parse(&file("a", "0680")).is_err());
        // Names are text, whatever they look like.
        assert_eq!(parse(&file("010", "0")).unwrap().devices[0].name, "010");
    }
}
