//! `Binds` and `Mounts` of a request, read and checked.

use std::path::{Component, Path, PathBuf};

use http::StatusCode;

use super::{Details, Kind, MountPoint};
use crate::{
    api::host_config::{HostConfig, Mount, VolumeOptions},
    http::error::{Failure, Result},
    volumes,
};

const PROPAGATIONS: [&str; 6] = ["private", "rprivate", "slave", "rslave", "shared", "rshared"];

/// All of them, in the order of the request. A volume that the request does not name has no name here.
///
/// # Errors
/// In dockerd's words, and with its codes: 500 for the short form, 400 for the long one.
pub(crate) fn mount_points(host: &HostConfig) -> Result<Vec<MountPoint>> {
    let mut points: Vec<MountPoint> = Vec::new();
    for bind in host.binds.iter().flatten() {
        add(&mut points, short(bind)?)?;
    }
    for mount in host.mounts.iter().flatten() {
        let invalid = |why: String| {
            Failure::bad_request(format!(
                "invalid mount config for type \"{}\": {why}",
                mount.r#type
            ))
        };
        add(&mut points, long(mount).map_err(invalid)?)?;
    }
    Ok(points)
}

fn add(points: &mut Vec<MountPoint>, point: MountPoint) -> Result<()> {
    if points.iter().any(|other| other.destination == point.destination) {
        return Err(Failure::bad_request(format!("Duplicate mount point: {}", point.destination)));
    }
    points.push(point);
    Ok(())
}

/// `SOURCE:TARGET[:OPTIONS]`, or a target alone for an anonymous volume.
fn short(bind: &str) -> Result<MountPoint> {
    let refused = |text: String| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, text);
    let invalid = || refused(format!("invalid volume specification: '{bind}'"));
    let parts: Vec<&str> = bind.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        ["", ..] => return Err(invalid()),
        [target] => ("", *target, ""),
        // A volume alone cannot have a mode.
        [_, mode] if is_mode(mode) => return Err(invalid()),
        [source, target] => (*source, *target, ""),
        [source, target, mode] => (*source, *target, *mode),
        _ => return Err(invalid()),
    };
    if !is_mode(mode) {
        return Err(refused(format!("invalid mode: {mode}")));
    }
    let kind = if source.starts_with('/') { Kind::Bind } else { Kind::Volume };
    let destination = destination(target).map_err(|why| {
        let kind = if kind == Kind::Bind { "bind" } else { "volume" };
        refused(format!(
            "invalid volume specification: '{bind}': invalid mount config for type \"{kind}\": {why}"
        ))
    })?;
    let options: Vec<&str> = mode.split(',').collect();
    let propagation = options.iter().find(|option| PROPAGATIONS.contains(option)).copied();
    if kind == Kind::Volume && !source.is_empty() && !volumes::is_name(source) {
        return Err(Failure::bad_request(volumes::invalid_name(source)));
    }
    let is_unnamed = kind == Kind::Volume && source.is_empty();
    let (name, source, driver) = place(kind, source);
    Ok(MountPoint {
        kind,
        name,
        source,
        destination,
        driver,
        mode: mode.to_owned(),
        writable: !options.contains(&"ro"),
        propagation: match kind {
            Kind::Bind => propagation.unwrap_or("rprivate").to_owned(),
            _ => String::new(),
        },
        details: Details {
            makes_source: kind == Kind::Bind,
            names_propagation: propagation.is_some(),
            relabels: options.iter().any(|option| ["z", "Z"].contains(option)),
            is_filled: kind == Kind::Volume && !options.contains(&"nocopy"),
            is_unnamed,
            ..Details::default()
        },
    })
}

/// The name, the source and the driver, as they are shown.
fn place(kind: Kind, source: &str) -> (String, String, String) {
    match kind {
        Kind::Volume => (source.to_owned(), String::new(), volumes::DRIVER.to_owned()),
        Kind::Bind => (String::new(), clean(source), String::new()),
        Kind::Tmpfs | Kind::Image => (String::new(), source.to_owned(), String::new()),
    }
}

/// Whether each kind of option is there once at most, and there is no other.
fn is_mode(mode: &str) -> bool {
    let classes: [&[&str]; 5] = [
        &["ro", "rw"],
        &["z", "Z"],
        &PROPAGATIONS,
        &["nocopy", "copy"],
        &["consistent", "cached", "delegated", "default"],
    ];
    let options: Vec<&str> = mode.split(',').collect();
    mode.is_empty()
        || (options.iter().all(|option| classes.iter().any(|class| class.contains(option)))
            && classes
                .iter()
                .all(|class| options.iter().filter(|option| class.contains(option)).count() < 2))
}

fn long(mount: &Mount) -> Result<MountPoint, String> {
    if mount.target.is_empty() {
        return Err("field Target must not be empty".to_owned());
    }
    let destination = destination(&mount.target)?;
    let extra = |is_there: bool, field: &str| match is_there {
        true => Err(format!("field {field} must not be specified")),
        false => Ok(()),
    };
    let bind = mount.bind_options.clone().unwrap_or_default();
    let volume = mount.volume_options.clone().unwrap_or_default();
    let kind = match mount.r#type.as_str() {
        "bind" => Kind::Bind,
        "volume" => Kind::Volume,
        "tmpfs" => Kind::Tmpfs,
        "image" => Kind::Image,
        _ => return Err("mount type unknown".to_owned()),
    };
    if matches!(kind, Kind::Bind | Kind::Image) && mount.source.is_empty() {
        return Err("field Source must not be empty".to_owned());
    }
    extra(kind != Kind::Bind && mount.bind_options.is_some(), "BindOptions")?;
    extra(kind == Kind::Bind && mount.volume_options.is_some(), "VolumeOptions")?;
    extra(kind == Kind::Tmpfs && !mount.source.is_empty(), "Source")?;
    if kind == Kind::Bind {
        check_bind(&mount.source, &bind.propagation, bind.create_mountpoint)?;
    }
    if kind == Kind::Volume && mount.read_only && mount.source.is_empty() {
        return Err("must not set ReadOnly mode when using anonymous volumes".to_owned());
    }
    if kind == Kind::Volume {
        check_volume(&mount.source, &volume)?;
    }
    let (name, source, driver) = place(kind, &mount.source);
    Ok(MountPoint {
        kind,
        name,
        source,
        destination,
        driver,
        mode: String::new(),
        writable: !mount.read_only && kind != Kind::Image,
        propagation: match (kind, bind.propagation.as_str()) {
            (Kind::Bind, "") => "rprivate".to_owned(),
            (Kind::Bind, propagation) => propagation.to_owned(),
            _ => String::new(),
        },
        details: Details {
            makes_source: bind.create_mountpoint,
            names_propagation: !bind.propagation.is_empty(),
            relabels: false,
            is_single: bind.non_recursive,
            recursive_readonly: match () {
                () if bind.read_only_non_recursive => Some(false),
                () if bind.read_only_force_recursive => Some(true),
                () => None,
            },
            options: if kind == Kind::Tmpfs { tmpfs_options(mount)? } else { Vec::new() },
            sub_path: match kind {
                Kind::Volume => volume.subpath,
                _ => mount.image_options.clone().unwrap_or_default().subpath,
            },
            is_filled: kind == Kind::Volume && !volume.no_copy,
            is_unnamed: kind == Kind::Volume && mount.source.is_empty(),
            labels: volume.labels,
        },
    })
}

fn check_bind(source: &str, propagation: &str, is_made: bool) -> Result<(), String> {
    if !["", "private", "rprivate", "slave", "rslave", "shared", "rshared"].contains(&propagation) {
        return Err(format!("invalid propagation mode: {propagation}"));
    }
    absolute(source)?;
    match is_made || Path::new(source).symlink_metadata().is_ok() {
        true => Ok(()),
        false => Err(format!("bind source path does not exist: {source}")),
    }
}

fn check_volume(name: &str, options: &VolumeOptions) -> Result<(), String> {
    if !name.is_empty() && !volumes::is_name(name) {
        return Err(volumes::invalid_name(name));
    }
    let is_inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if !Path::new(&options.subpath).components().all(is_inside) {
        return Err(format!(
            "subpath must be a relative path within the volume: {}",
            options.subpath
        ));
    }
    Ok(())
}

fn tmpfs_options(mount: &Mount) -> Result<Vec<String>, String> {
    let options = mount.tmpfs_options.clone().unwrap_or_default();
    let mut all = Vec::new();
    all.extend(mount.read_only.then(|| "ro".to_owned()));
    all.extend(options.mode.filter(|mode| *mode != 0).map(|mode| format!("mode={mode:o}")));
    all.extend(options.size_bytes.filter(|size| *size != 0).map(|size| format!("size={size}")));
    for option in options.options.iter().flatten() {
        match option.as_slice() {
            [name] | [name, _] if !["exec", "noexec"].contains(&name.as_str()) => {
                return Err(format!("invalid option: {name}"));
            }
            [name] => all.push(name.clone()),
            [name, value] => all.push(format!("{name}={value}")),
            _ => return Err("invalid option array length".to_owned()),
        }
    }
    Ok(all)
}

/// The cleaned path of a target. `Err` says why it cannot be one.
pub(crate) fn destination(target: &str) -> Result<String, String> {
    let cleaned = clean(target);
    if cleaned == "/" {
        return Err("invalid specification: destination can't be '/'".to_owned());
    }
    absolute(target)?;
    Ok(cleaned)
}

fn absolute(path: &str) -> Result<(), String> {
    match path.starts_with('/') {
        true => Ok(()),
        false => Err(format!("invalid mount path: '{path}' mount path must be absolute")),
    }
}

/// Without `.`, `..` and slashes that say nothing (Go's `path.Clean` of an absolute path).
fn clean(path: &str) -> String {
    let mut cleaned = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::CurDir => {}
            // The parent of the root is the root.
            Component::ParentDir => drop(cleaned.pop()),
            other => cleaned.push(other),
        }
    }
    cleaned.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binds(binds: &[&str]) -> Result<Vec<MountPoint>> {
        let binds = Some(binds.iter().map(|bind| (*bind).to_owned()).collect());
        mount_points(&HostConfig { binds, ..HostConfig::default() })
    }

    #[test]
    fn short_forms_are_read() {
        let points = binds(&["/a/:/b/../c:ro,z,rslave", "vol:/v"]).unwrap();
        assert_eq!((points[0].source.as_str(), points[0].destination.as_str()), ("/a", "/c"));
        assert!(!points[0].writable && points[0].details.relabels);
        assert_eq!(
            (points[0].mode.as_str(), points[0].propagation.as_str()),
            ("ro,z,rslave", "rslave")
        );
        assert_eq!((points[1].kind, points[1].name.as_str()), (Kind::Volume, "vol"));
    }

    #[test]
    fn what_is_wrong_is_said_in_dockerds_words() {
        for (wrong, text) in [
            (
                &["x"][..],
                "invalid volume specification: 'x': invalid mount config for type \"volume\": \
                 invalid mount path: 'x' mount path must be absolute",
            ),
            (&["/a:/b:nope"], "invalid mode: nope"),
            (&["/a:/b:ro,rw"], "invalid mode: ro,rw"),
            (
                &["/a:/"],
                "invalid volume specification: '/a:/': invalid mount config for type \"bind\": \
                 invalid specification: destination can't be '/'",
            ),
            (&[":/b"], "invalid volume specification: ':/b'"),
            (&["/a:ro"], "invalid volume specification: '/a:ro'"),
            (&["/a:/b", "/c:/b"], "Duplicate mount point: /b"),
        ] {
            assert_eq!(binds(wrong).unwrap_err().message, text);
        }
        let long = |kind: &str, source: &str, target: &str| {
            let mount = Mount {
                r#type: kind.into(),
                source: source.into(),
                target: target.into(),
                ..Mount::default()
            };
            let host = HostConfig { mounts: Some(vec![mount]), ..HostConfig::default() };
            mount_points(&host).unwrap_err().message
        };
        let of = |kind: &str, why: &str| format!("invalid mount config for type \"{kind}\": {why}");
        for (kind, source, target, why) in [
            ("bind", "/nope-at-all", "/b", "bind source path does not exist: /nope-at-all"),
            ("bind", "rel", "/b", "invalid mount path: 'rel' mount path must be absolute"),
            ("nope", "", "/b", "mount type unknown"),
            ("volume", "", "", "field Target must not be empty"),
            ("tmpfs", "x", "/b", "field Source must not be specified"),
            ("bind", "/tmp", "b", "invalid mount path: 'b' mount path must be absolute"),
        ] {
            assert_eq!(long(kind, source, target), of(kind, why));
        }
    }
}
