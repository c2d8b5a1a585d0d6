//! What goes over the wire between cells: paths, headers, bounds, and the words of a refusal.
//!
//! ```text
//!  POST /members/v1/cells/{cell}/call    a Request                        ─▶ 200, a Response
//!  POST /members/v1/cells/{cell}/posts   posts, each encoded by itself    ─▶ 204
//! ```
//!
//! Bodies are bincode through `cellbus_bus::codec`. A refusal is a problem document whose code
//! says that nothing was handed to a cell.

use axum::http::{HeaderName, StatusCode};
use bytes::Bytes;
use cellbus_bus::codec;
use serde::{Deserialize, Serialize};

use super::{Post, Request, Response};

/// What every path between cells begins with.
pub(crate) const PREFIX: &str = "/members/v1/cells/";
/// The cluster that the caller belongs to.
pub(crate) const CLUSTER: HeaderName = HeaderName::from_static("cellbus-cluster");
/// The format of the messages: [`FORMAT`].
pub(crate) const FORMAT_NAME: HeaderName = HeaderName::from_static("cellbus-format");
/// Grows when [`Request`], [`Response`] or [`Post`] change so that older builds misread them.
pub(crate) const FORMAT: u16 = 6;

/// Bytes of one request: the posts of a burst. A single post is far below.
pub(crate) const REQUEST_BYTES_MAX: usize = 16 << 20;
/// Bytes of one answer: the inventory of a manager is the largest. It is what the codec reads.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The cell is not in the process that was asked.
pub(crate) const NOT_HERE: &str = "member_not_here";
/// The caller belongs to another cluster.
pub(crate) const WRONG_CLUSTER: &str = "member_of_other_cluster";
/// The caller speaks a format that this build does not.
pub(crate) const WRONG_FORMAT: &str = "member_format_unknown";
/// The body is no message.
pub(crate) const INVALID: &str = "member_message_invalid";
/// The cell stopped before it had answered.
pub(crate) const STOPPED: &str = "member_stopped";
/// The connection is no member's.
pub(crate) const NOT_VERIFIED: &str = "member_not_verified";
/// Codes with which nothing was handed to a cell.
pub(crate) const NOT_TAKEN: &[&str] =
    &[NOT_HERE, WRONG_CLUSTER, WRONG_FORMAT, INVALID, NOT_VERIFIED, "too_large", "too_many_requests"];

/// What is asked for, as the last part of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A question.
    Call,
    /// Posts.
    Posts,
}
impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Posts => "posts",
        }
    }
    /// The status of an answer: any other is a refusal, or no cell's.
    pub(crate) fn answered(self) -> StatusCode {
        match self {
            Self::Call => StatusCode::OK,
            Self::Posts => StatusCode::NO_CONTENT,
        }
    }
}

pub(crate) fn request(request: &Request) -> Bytes {
    codec::encode(request).into()
}
pub(crate) fn read_request(bytes: &[u8]) -> Result<Request, codec::Error> {
    codec::decode(bytes)
}
/// An answer; one that is larger than callers take is an answer that says so.
pub(crate) fn response(response: &Response) -> Bytes {
    let bytes = codec::encode(response);
    if bytes.len() <= ANSWER_BYTES_MAX {
        return bytes.into();
    }
    let detail = format!("the answer has {} bytes, more than the {ANSWER_BYTES_MAX} that one may have", bytes.len());
    codec::encode(&Response::Failed { detail }).into()
}
pub(crate) fn read_response(bytes: &[u8]) -> Result<Response, codec::Error> {
    codec::decode(bytes)
}

/// Many posts in one body. Each is encoded when it is posted, so that what waits is counted in bytes.
#[derive(Serialize, Deserialize)]
struct Posts(Vec<Bytes>);

pub(crate) fn post(post: &Post) -> Bytes {
    codec::encode(post).into()
}
pub(crate) fn posts(encoded: Vec<Bytes>) -> Bytes {
    codec::encode(&Posts(encoded)).into()
}
pub(crate) fn read_posts(bytes: &[u8]) -> Result<Vec<Post>, codec::Error> {
    let Posts(encoded) = codec::decode(bytes)?;
    encoded.iter().map(|post| codec::decode(post)).collect()
}
