//! XML as SOAP needs it: answers as a tree of bounded depth, requests as text.

use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;

/// Elements within each other in one answer. Those of vSphere stay below 20.
const DEPTH_MAX: usize = 64;

/// One element of an answer. Names are without their prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) name: String,
    /// What `xsi:type` says: the kind of a value, or of a fault.
    pub(crate) kind: String,
    /// What `type` says: the kind of the object that a reference is to.
    pub(crate) of: String,
    pub(crate) text: String,
    pub(crate) children: Vec<Element>,
}

impl Element {
    pub(crate) fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }
    /// The text of a child; empty if there is none.
    pub(crate) fn text_of(&self, name: &str) -> &str {
        self.child(name).map_or("", |child| &child.text)
    }
    /// A number in it, if that is what it holds.
    pub(crate) fn number<T: std::str::FromStr>(&self) -> Option<T> {
        self.text.trim().parse().ok()
    }
}

/// Reads a document. Nothing is fetched and no entity beside the five of XML is known.
///
/// # Errors
/// Why it is none, in words.
pub(crate) fn parse(document: &str) -> Result<Element, String> {
    let mut reader = Reader::from_str(document);
    // Within each other, the outermost first; the first holds the document.
    let mut open = vec![Element::default()];
    loop {
        let event = reader.read_event().map_err(|error| format!("this is not XML: {error}"))?;
        match event {
            Event::Start(start) => {
                if open.len() > DEPTH_MAX {
                    return Err(format!("elements lie more than {DEPTH_MAX} deep"));
                }
                open.push(element(&start)?);
            }
            Event::Empty(start) => {
                let element = element(&start)?;
                inner(&mut open).children.push(element);
            }
            Event::End(_) => {
                let ended = open.pop().filter(|_| !open.is_empty()).ok_or("an element ends that did not begin")?;
                inner(&mut open).children.push(ended);
            }
            Event::Text(text) => inner(&mut open).text.push_str(&text),
            Event::CData(text) => inner(&mut open).text.push_str(&text),
            Event::GeneralRef(name) => {
                let known = match name.resolve_char_ref().map_err(|error| format!("no character: {error}"))? {
                    Some(character) => Some(character),
                    None => match &*name {
                        "lt" => Some('<'),
                        "gt" => Some('>'),
                        "amp" => Some('&'),
                        "quot" => Some('"'),
                        "apos" => Some('\''),
                        _ => None,
                    },
                };
                inner(&mut open).text.push(known.ok_or("an entity that XML does not have")?);
            }
            Event::DocType(_) => return Err("there is a document type, which SOAP forbids".to_owned()),
            Event::Decl(_) | Event::PI(_) | Event::Comment(_) => {}
            Event::Eof => break,
        }
    }
    let mut document = open.pop().filter(|_| open.is_empty()).ok_or("it ends within an element")?;
    match document.children.len() {
        1 => Ok(document.children.remove(0)),
        many => Err(format!("there are {many} elements at the top, not one")),
    }
}

fn inner(open: &mut [Element]) -> &mut Element {
    open.last_mut().expect("the document itself is never closed")
}

fn element(start: &BytesStart<'_>) -> Result<Element, String> {
    let name = start.local_name().as_ref().to_owned();
    let mut element = Element { name, ..Element::default() };
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|error| format!("an attribute is broken: {error}"))?;
        // What is read of attributes are names of types, which need no escapes.
        let value = || attribute.value.rsplit(':').next().unwrap_or_default().to_owned();
        match attribute.key.as_ref() {
            "type" => element.of = value(),
            key if key.ends_with(":type") => element.kind = value(),
            _ => {}
        }
    }
    Ok(element)
}

// ── requests ──

/// An element with text in it.
pub(crate) fn text(name: &str, text: impl AsRef<str>) -> String {
    format!("<{name}>{}</{name}>", escaped(text.as_ref()))
}
/// An element with elements in it.
pub(crate) fn node(name: &str, within: &[String]) -> String {
    format!("<{name}>{}</{name}>", within.concat())
}
/// The same, of a kind that its place alone does not tell.
pub(crate) fn typed(name: &str, kind: &str, within: &[String]) -> String {
    format!("<{name} xsi:type=\"{kind}\">{}</{name}>", within.concat())
}
/// Text as it stands in XML. Characters that XML cannot hold are left out.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' | '\r' => out.push_str(&format!("&#{};", u32::from(character))),
            '\u{fffe}' | '\u{ffff}' => {}
            character if character.is_control() && (character as u32) < 0x20 => {}
            character => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let read = parse(
            "<?xml version=\"1.0\"?><s:a xmlns:s='x'><b type=\"Host\" xsi:type=\"vim25:Ref\">h&amp;&#65;1</b><c/></s:a>",
        )
        .unwrap();
        assert_eq!((read.name.as_str(), read.text_of("b"), read.children.len()), ("a", "h&A1", 2));
        let b = read.child("b").unwrap();
        assert_eq!((b.of.as_str(), b.kind.as_str()), ("Host", "Ref"));
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for wrong in
            ["", "<a>", "</a>", "<a/><b/>", "<a>&x;</a>", "<!DOCTYPE a [<!ENTITY x \"y\">]><a/>", "<a b></a>", "a"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(parse(&"<a>".repeat(100_000)).is_err());
    }

    proptest::proptest! {
        #[test]
        fn anything_is_read_or_refused(document in ".{0,300}") {
            let _ = parse(&document);
        }
        #[test]
        fn text_comes_back(said in "[ -~\n\t\u{e4}\u{20ac}]{0,80}") {
            proptest::prop_assert_eq!(parse(&text("a", &said)).unwrap().text, said);
        }
    }
}
