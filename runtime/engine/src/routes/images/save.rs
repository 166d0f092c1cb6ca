//! `GET /images/get` and `GET /images/{name}/get`: images as one tar, both an OCI image layout and a
//! docker-archive.

use std::sync::Arc;

use berth_image::{Image, normalize};
use http::Method;

use crate::{
    container::platform::Platform,
    engine::Engine,
    http::{
        body::{self, Answer},
        error::{Failure, Result},
        transfer,
    },
    image_name::{self, repository},
    routes::Call,
};

/// An image with the tags that it gets in the archive.
type Selected = (Arc<Image>, Vec<String>);

/// Saves the images that `names` has, of which there may be several.
pub(in crate::routes) fn save(call: &Call) -> Result<Answer> {
    write(call, &call.query.all("names").collect::<Vec<_>>())
}

pub(in crate::routes) fn save_one(call: &Call, name: &str) -> Result<Answer> {
    write(call, &[name])
}

/// # Errors
/// 404 for one that is not here, 409 for one that is damaged. What fails later breaks the answer off.
fn write(call: &Call, names: &[&str]) -> Result<Answer> {
    if let Some(platform) = Platform::of_document(call.query.get("platform"))?
        && !platform.is_own()
    {
        let text = format!("no suitable export target found for platform {platform}");
        return Err(Failure::not_found(text));
    }
    let engine = &call.engine;
    let mut selected = Vec::new();
    for name in names {
        selected.extend(select(engine, name)?);
    }
    let images: Vec<Arc<Image>> = selected.iter().map(|(image, _)| image.clone()).collect();
    let export = engine.node.host.images.select(selected)?;
    // A HEAD asks for nothing to be read.
    if call.request.method() == Method::HEAD {
        return Ok(body::streaming("application/x-tar", futures_util::stream::empty()));
    }
    for image in images {
        engine.publish_image(&image, "save", image.id.as_str());
    }
    let tar = transfer::send(move |to| Ok(export.write(to)?));
    Ok(body::streaming("application/x-tar", tar))
}

/// What a name stands for: an id for its image without tags, a repository for all of its tags, else
/// one tag, or a digest.
fn select(engine: &Engine, name: &str) -> Result<Vec<Selected>> {
    let images = &engine.node.host.images;
    let full = normalize(name).ok_or_else(|| image_name::invalid(name))?;
    let unknown = || Failure::not_found(format!("No such image: {name}"));
    let of_repository = format!("{}:", repository(&full));
    let last = name.rsplit('/').next().unwrap_or_default();
    let tag = |tag: &String, image: &Arc<Image>| (image.clone(), vec![tag.clone()]);
    let is_repository = !last.contains([':', '@']);
    let mut selected = Vec::new();
    for image in images.all() {
        let names = images.names(&image);
        let wanted = |tag: &&String| match is_repository {
            true => tag.starts_with(&of_repository),
            false => **tag == full,
        };
        selected.extend(names.tags.iter().filter(wanted).map(|name| tag(name, &image)));
    }
    if !selected.is_empty() {
        return Ok(selected);
    }
    let image = images.find(name).ok().flatten().ok_or_else(unknown)?;
    Ok(vec![(image, Vec::new())])
}
