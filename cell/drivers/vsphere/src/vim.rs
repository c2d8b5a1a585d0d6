//! The calls of the vSphere API that are used, in its own terms.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::session::Session;
use crate::soap::Failure;
use crate::xml::{Element, node, text, typed};

/// Objects in one page of properties.
pub(crate) const PAGE: usize = 500;
/// Objects that one question may bring: vCenter's own limits (45,000 VMs, 2,500 hosts) with room to spare.
const OBJECTS_MAX: usize = 200_000;
/// For a call that changes nothing or only begins a task.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A reference to an object of a vCenter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ref {
    pub(crate) kind: String,
    pub(crate) id: String,
}

impl Ref {
    pub(crate) fn new(kind: &str, id: &str) -> Self {
        Self { kind: kind.to_owned(), id: id.to_owned() }
    }
    /// From an element that is one.
    pub(crate) fn of(element: &Element) -> Option<Self> {
        let known = !element.of.is_empty() && !element.text.is_empty();
        known.then(|| Self { kind: element.of.clone(), id: element.text.clone() })
    }
    pub(crate) fn xml(&self, name: &str) -> String {
        let (kind, id) = (crate::xml::escaped(&self.kind), crate::xml::escaped(&self.id));
        format!("<{name} type=\"{kind}\">{id}</{name}>")
    }
}

/// Properties of one object.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) this: Ref,
    pub(crate) properties: BTreeMap<String, Element>,
}

impl Object {
    pub(crate) fn text(&self, name: &str) -> &str {
        self.properties.get(name).map_or("", |value| &value.text)
    }
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.properties.get(name)?.number()
    }
    pub(crate) fn reference(&self, name: &str) -> Option<Ref> {
        Ref::of(self.properties.get(name)?)
    }
    pub(crate) fn references(&self, name: &str) -> Vec<Ref> {
        self.properties.get(name).map(|list| list.children.iter().filter_map(Ref::of).collect()).unwrap_or_default()
    }
}

/// Which properties of objects of one kind.
pub(crate) fn properties(kind: &str, names: &[&str]) -> String {
    let names = names.iter().map(|name| text("pathSet", name));
    node("propSet", &[text("type", kind), text("all", "false")].into_iter().chain(names).collect::<Vec<_>>())
}

/// One object, and those that its property `path` refers to.
#[derive(Clone, Copy)]
pub(crate) struct Step<'a> {
    pub(crate) kind: &'a str,
    pub(crate) path: &'a str,
    /// Where it goes on from there: names of other steps.
    pub(crate) then: &'a [&'a str],
}

/// An object to begin with, and the steps from it. With no `own`, only what it leads to counts.
pub(crate) fn from(object: &Ref, own: bool, steps: &[Step<'_>]) -> String {
    let select = steps.iter().map(|step| {
        let name = step_name(step.kind, step.path);
        let then = step.then.iter().map(|name| node("selectSet", &[text("name", name)]));
        let parts = [text("name", name), text("type", step.kind), text("path", step.path), text("skip", "false")];
        typed("selectSet", "TraversalSpec", &parts.into_iter().chain(then).collect::<Vec<_>>())
    });
    let skip = text("skip", if own { "false" } else { "true" });
    node("objectSet", &[object.xml("obj"), skip].into_iter().chain(select).collect::<Vec<_>>())
}

fn step_name(kind: &str, path: &str) -> String {
    format!("{kind}.{path}")
}

/// A filter specification of these parts ([`properties`], then [`from`]).
pub(crate) fn filter(name: &str, parts: &[String]) -> String {
    node(name, parts)
}

impl Session {
    /// Properties now, in pages.
    pub(crate) async fn retrieve(&self, parts: &[String]) -> Result<Vec<Object>, Failure> {
        let mut objects = Vec::new();
        self.retrieve_each(parts, PAGE, |object| objects.push(object)).await?;
        Ok(objects)
    }

    /// Properties now, of so many objects a page, each given away as its page comes: of objects of which much
    /// is asked, not all of it need be there at once.
    pub(crate) async fn retrieve_each(
        &self,
        parts: &[String],
        page: usize,
        mut each: impl FnMut(Object) + Send,
    ) -> Result<(), Failure> {
        let collector = &self.content()?.collector;
        let options = node("options", &[text("maxObjects", page.to_string())]);
        let mut page = self.call("RetrievePropertiesEx", collector, &[filter("specSet", parts), options]).await?;
        let mut count = 0;
        loop {
            let Some(result) = page.child("returnval") else { return Ok(()) };
            let objects = result.all("objects").filter_map(object);
            count += objects.map(&mut each).count();
            if count > OBJECTS_MAX {
                return Err(Failure::NoAnswer(format!("there are more than {OBJECTS_MAX} objects")));
            }
            let token = result.text_of("token");
            if token.is_empty() {
                return Ok(());
            }
            page = self.call("ContinueRetrievePropertiesEx", collector, &[text("token", token)]).await?;
        }
    }

    /// Properties of one object; `None` if it is not there.
    pub(crate) async fn look(&self, this: &Ref, names: &[&str]) -> Result<Option<Object>, Failure> {
        match self.retrieve(&[properties(&this.kind, names), from(this, true, &[])]).await {
            Ok(objects) => Ok(objects.into_iter().find(|object| object.this == *this)),
            Err(Failure::Fault(fault)) if fault.kind == "ManagedObjectNotFound" => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// A view of all objects of these kinds below `container`, for the life of the session.
    pub(crate) async fn view(&self, container: &Ref, kinds: &[&str]) -> Result<Ref, Failure> {
        let kinds = kinds.iter().map(|kind| text("type", kind));
        let parts: Vec<_> = [container.xml("container")].into_iter().chain(kinds).collect();
        let parts = [parts.concat(), text("recursive", "true")];
        returned(&self.call("CreateContainerView", &self.content()?.views, &parts).await?)
    }

    /// Drops a view, if it is still there.
    pub(crate) async fn drop_view(&self, view: &Ref) {
        // It goes with the session, too.
        let _ = self.call("DestroyView", view, &[]).await;
    }

    /// What of a folder has this name.
    pub(crate) async fn child(&self, folder: &Ref, name: &str) -> Result<Option<Ref>, Failure> {
        let parts = [folder.xml("entity"), text("name", name)];
        let answer = self.call("FindChild", &self.content()?.search, &parts).await?;
        Ok(answer.child("returnval").and_then(Ref::of))
    }

    /// The VM that carries this instance UUID, of one datacenter or any.
    pub(crate) async fn by_uuid(&self, uuid: &str, within: Option<&Ref>) -> Result<Option<Ref>, Failure> {
        let within = within.map(|datacenter| datacenter.xml("datacenter")).unwrap_or_default();
        let parts = [within, text("uuid", uuid), text("vmSearch", "true"), text("instanceUuid", "true")];
        let answer = self.call("FindByUuid", &self.content()?.search, &parts).await?;
        Ok(answer.child("returnval").and_then(Ref::of))
    }

    /// Begins a task.
    pub(crate) async fn begin(&self, method: &str, this: &Ref, parts: &[String]) -> Result<Ref, Failure> {
        returned(&self.call(method, this, parts).await?)
    }
}

/// The objects of one page.
pub(crate) fn objects(answer: &Element) -> Vec<Object> {
    answer.child("returnval").map(|page| page.all("objects").filter_map(object).collect()).unwrap_or_default()
}

fn object(element: &Element) -> Option<Object> {
    let this = Ref::of(element.child("obj")?)?;
    let set = element.all("propSet").map(|set| (set.text_of("name").to_owned(), set.child("val").cloned()));
    let properties = set.filter_map(|(name, value)| Some((name, value?))).collect();
    Some(Object { this, properties })
}

/// The reference that an answer is.
pub(crate) fn returned(answer: &Element) -> Result<Ref, Failure> {
    let found = answer.child("returnval").and_then(Ref::of);
    found.ok_or_else(|| Failure::NoAnswer(format!("{} brought nothing", answer.name)))
}
