//! XML, in and out: documents of libvirt are read with bounds, and changed without losing what is
//! not ours in them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use quick_xml::XmlVersion;
use quick_xml::events::{BytesEnd, BytesStart, BytesText, Event};
use quick_xml::name::ResolveResult;
use quick_xml::{NsReader, Writer};

use crate::record::{NAMESPACE, PREFIX};

/// A domain with every device that there is has some tens of KiB; libvirt itself takes 4 MiB.
pub(crate) const DOCUMENT_BYTES_MAX: usize = 1 << 20;
/// Below this libvirt's own documents stay by far.
const DEPTH_MAX: usize = 64;

/// What was read is not what libvirt or Cellbus writes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a document that can be used: {0}")]
pub(crate) struct Invalid(pub(crate) String);

impl Invalid {
    pub(crate) fn value(of: &str) -> Self {
        Self(format!("{of} has no value that can be"))
    }
}
impl From<quick_xml::Error> for Invalid {
    fn from(error: quick_xml::Error) -> Self {
        Self(error.to_string())
    }
}

/// An element with attributes and nothing in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) name: String,
    attributes: BTreeMap<String, String>,
}

impl Element {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), attributes: BTreeMap::new() }
    }
    pub(crate) fn put(&mut self, key: &str, value: impl fmt::Display) {
        self.attributes.insert(key.to_owned(), value.to_string());
    }
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.attributes.get(key).map(String::as_str)
    }
    pub(crate) fn optional<T: FromStr>(&self, key: &str) -> Result<Option<T>, Invalid> {
        self.get(key).map(|text| text.parse().map_err(|_| Invalid::value(key))).transpose()
    }
    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>, Invalid> {
        self.optional(key)
    }
    pub(crate) fn required<T: FromStr>(&self, key: &str) -> Result<T, Invalid> {
        self.optional(key)?.ok_or_else(|| Invalid(format!("{key} is missing")))
    }

    /// As `virDomainSetMetadata` takes it: libvirt adds the namespace.
    pub(crate) fn bare(&self) -> String {
        let mut out = Writer::new(Vec::new());
        write(&mut out, Event::Empty(self.tag(&self.name)));
        text_of(out)
    }
    /// With its namespace.
    pub(crate) fn write_to(&self, out: &mut Writer<Vec<u8>>) {
        let name = format!("{PREFIX}:{}", self.name);
        let mut tag = self.tag(&name);
        tag.push_attribute((format!("xmlns:{PREFIX}").as_str(), NAMESPACE));
        write(out, Event::Empty(tag.into_owned()));
    }
    fn tag(&self, name: &str) -> BytesStart<'static> {
        let mut tag = BytesStart::new(name.to_owned());
        for (key, value) in &self.attributes {
            tag.push_attribute((key.as_str(), value.as_str()));
        }
        tag
    }

    fn read(tag: &BytesStart<'_>) -> Result<Self, Invalid> {
        let mut element = Self::new(tag.local_name().as_ref());
        for attribute in tag.attributes() {
            let attribute = attribute.map_err(|error| Invalid(error.to_string()))?;
            let value =
                attribute.normalized_value(XmlVersion::Implicit1_0).map_err(|error| Invalid(error.to_string()))?;
            element.put(attribute.key.as_ref(), value);
        }
        Ok(element)
    }
}

/// Writes into memory, which never fails.
pub(crate) fn write(out: &mut Writer<Vec<u8>>, event: Event<'_>) {
    out.write_event(event).expect("memory takes what is written");
}
/// What was written.
pub(crate) fn text_of(out: Writer<Vec<u8>>) -> String {
    String::from_utf8(out.into_inner()).expect("what is written of strings is one")
}
/// `<name>text</name>`, the text escaped.
pub(crate) fn leaf(out: &mut Writer<Vec<u8>>, name: &str, attributes: &[(&str, &str)], text: &str) {
    open(out, name, attributes);
    write(out, Event::Text(BytesText::new(text)));
    close(out, name);
}
/// `<name attributes/>`.
pub(crate) fn empty(out: &mut Writer<Vec<u8>>, name: &str, attributes: &[(&str, &str)]) {
    write(out, Event::Empty(BytesStart::new(name).with_attributes(attributes.iter().copied())));
}
/// `<name attributes>`.
pub(crate) fn open(out: &mut Writer<Vec<u8>>, name: &str, attributes: &[(&str, &str)]) {
    write(out, Event::Start(BytesStart::new(name).with_attributes(attributes.iter().copied())));
}
/// `</name>`.
pub(crate) fn close(out: &mut Writer<Vec<u8>>, name: &str) {
    write(out, Event::End(BytesEnd::new(name)));
}

/// One thing that a document has, and where.
pub(crate) struct Found<'a> {
    /// Names of the elements that it is in, the root first, its own last.
    pub(crate) path: &'a [String],
    pub(crate) what: What<'a>,
}
/// What it is.
pub(crate) enum What<'a> {
    /// The start of an element.
    Tag(&'a Element),
    /// An element of our namespace, of which nothing inside is told.
    Ours(&'a Element),
    /// Text in one, trimmed; what is written with entities comes in parts.
    Text(&'a str),
}

/// Reads a document through.
///
/// # Errors
/// [`Invalid`], that of `look` included.
pub(crate) fn walk(document: &str, mut look: impl FnMut(Found<'_>) -> Result<(), Invalid>) -> Result<(), Invalid> {
    if document.len() > DOCUMENT_BYTES_MAX {
        return Err(Invalid(format!("it has {} bytes, of at most {DOCUMENT_BYTES_MAX}", document.len())));
    }
    let mut reader = NsReader::from_str(document);
    let mut path: Vec<String> = Vec::new();
    loop {
        let (namespace, event) = reader.read_resolved_event()?;
        let ours = matches!(namespace, ResolveResult::Bound(found) if found.as_ref() == NAMESPACE);
        match event {
            Event::Start(tag) | Event::Empty(tag) if ours => {
                let element = Element::read(&tag)?;
                path.push(element.name.clone());
                look(Found { path: &path, what: What::Ours(&element) })?;
                path.pop();
                // An end that is ours is skipped below; what is inside has no meaning yet.
            }
            Event::Start(tag) => {
                let element = Element::read(&tag)?;
                path.push(element.name.clone());
                if path.len() > DEPTH_MAX {
                    return Err(Invalid(format!("it is more than {DEPTH_MAX} deep")));
                }
                look(Found { path: &path, what: What::Tag(&element) })?;
            }
            Event::Empty(tag) => {
                let element = Element::read(&tag)?;
                path.push(element.name.clone());
                look(Found { path: &path, what: What::Tag(&element) })?;
                path.pop();
            }
            Event::End(_) if ours => {}
            Event::End(_) => {
                path.pop();
            }
            Event::Text(text) => {
                let text = text.xml10_content();
                look(Found { path: &path, what: What::Text(text.trim()) })?;
            }
            Event::DocType(_) => return Err(Invalid("libvirt writes no document types".to_owned())),
            Event::Eof if path.is_empty() => return Ok(()),
            Event::Eof => return Err(Invalid("it ends in the middle".to_owned())),
            Event::CData(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::GeneralRef(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn elements_are_escaped_and_read_back() {
        let mut element = Element::new("owner");
        element.put("manager", "a<b>&\"c'\n");
        let mut out = Writer::new(Vec::new());
        open(&mut out, "metadata", &[]);
        element.write_to(&mut out);
        close(&mut out, "metadata");
        let mut seen = None;
        walk(&text_of(out), |found| {
            if let What::Ours(element) = found.what {
                seen = Some((found.path.to_vec(), element.get("manager").map(str::to_owned)));
            }
            Ok(())
        })
        .unwrap();
        let (path, manager) = seen.unwrap();
        assert_eq!(path, ["metadata", "owner"]);
        assert_eq!(manager.unwrap().trim(), "a<b>&\"c'");
    }

    #[test]
    fn documents_are_bounded() {
        let deep = "<a>".repeat(DEPTH_MAX + 1) + &"</a>".repeat(DEPTH_MAX + 1);
        let wide = format!("<a>{}</a>", " ".repeat(DOCUMENT_BYTES_MAX));
        for bad in [deep.as_str(), wide.as_str(), "<a>", "<!DOCTYPE a><a/>", "<a></b>"] {
            assert!(walk(bad, |_| Ok(())).is_err(), "{}", &bad[..bad.len().min(30)]);
        }
    }

    proptest! {
        #[test]
        fn no_document_panics(document in "[<>/a-c &;\"'=:!\\[\\]-]{0,80}") {
            let _ = walk(&document, |_| Ok(()));
        }
    }
}
