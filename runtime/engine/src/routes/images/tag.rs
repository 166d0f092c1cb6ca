//! `POST /images/{name}/tag`.

use berth_base::blocking::blocking;
use http::StatusCode;

use super::find;
use crate::{
    http::{
        body::{self, Answer},
        error::{Failure, Result},
    },
    image_name::{familiar, repository, tag_reference},
    routes::Call,
};

/// Gives an image another name.
///
/// # Errors
/// 400 for what cannot be a name, 404 if the image is not here.
pub(in crate::routes) fn tag(call: &Call, name: &str) -> Result<Answer> {
    let wanted = tag_reference(call.query.get("repo"), call.query.get("tag"))?;
    // As dockerd: nothing is asked for, and nothing done.
    let Some(wanted) = wanted else { return Ok(body::empty(StatusCode::OK)) };
    if familiar(repository(&wanted)) == "sha256" {
        let text = "refusing to create an ambiguous tag using digest algorithm as name";
        return Err(Failure::bad_request(text));
    }
    let image = find(&call.engine, name)?;
    blocking(|| call.engine.node.host.images.tag(&image, &wanted))?;
    call.engine.publish_image(&image, "tag", familiar(&wanted));
    Ok(body::empty(StatusCode::CREATED))
}
