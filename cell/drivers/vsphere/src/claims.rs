//! Which VMs say that they are Cellbus's, and where what they say does not add up.
//!
//! A VM that Cellbus made says who it is three times: by its name, by its instance UUID, in its note. People
//! clone VMs and give them other names, and a vCenter gives a VM that is registered twice another UUID. One
//! that was adopted has kept its name and its UUID: its note says its id, and to which UUID that belongs.

use std::collections::BTreeMap;

use cellbus_bus::ids::VmId;
use cellbus_cell::driver::Irregular;

use crate::note::Note;
use crate::vim::Ref;

/// Of what is irregular, how many are told in words.
const TOLD_MAX: usize = 5;
/// Characters of a name that are told: vCenter takes 80.
const NAME_MAX: usize = 80;

/// Which VM of ours it is: what its name says, or, where somebody gave it another, what its UUID and its
/// note agree on. A clone has a UUID of its own.
pub(crate) fn identity(name: &str, uuid: &str, note: Option<&Note>) -> Option<VmId> {
    id_of(name, uuid, note.map(|note| note.vm), note.and_then(|note| note.adopted.as_deref()))
}

fn id_of(name: &str, uuid: &str, noted: Option<VmId>, adopted: Option<&str>) -> Option<VmId> {
    if adopted.is_some_and(|adopted| uuid.eq_ignore_ascii_case(adopted)) {
        return noted;
    }
    name.parse().ok().or_else(|| noted.filter(|id| same(uuid, *id)))
}

fn same(uuid: &str, id: VmId) -> bool {
    uuid.eq_ignore_ascii_case(&id.to_string())
}

/// What one VM says.
#[derive(Clone, Debug, Default)]
struct Claim {
    name: String,
    uuid: String,
    /// Which VM its note is about.
    noted: Option<VmId>,
    /// The UUID that its note says it was adopted with.
    adopted: Option<String>,
    /// Which VM it was adopted as, when its note has been taken away.
    bare: Option<VmId>,
    template: bool,
}

impl Claim {
    fn id(&self) -> Option<VmId> {
        if self.template {
            return None;
        }
        id_of(&self.name, &self.uuid, self.noted, self.adopted.as_deref()).or(self.bare)
    }
    fn is_adopted(&self) -> bool {
        self.adopted.as_deref().is_some_and(|adopted| self.uuid.eq_ignore_ascii_case(adopted))
    }
    /// Its annotation is this now.
    fn annotated(&mut self, text: &str) {
        let was = self.bare.or(self.noted.filter(|_| self.is_adopted()));
        let note = Note::read(text);
        self.bare = was.filter(|_| note.is_none());
        (self.noted, self.adopted) = note.map_or((None, None), |note| (Some(note.vm), note.adopted));
    }

    /// What of it does not add up, in words.
    fn wrong(&self) -> Option<String> {
        let name: String = self.name.chars().filter(|c| !c.is_control()).take(NAME_MAX).collect();
        match (self.name.parse::<VmId>().ok(), self.noted) {
            _ if self.template || self.is_adopted() => None,
            _ if self.bare.is_some() => self.bare.map(|id| format!("{id} has no note")),
            (Some(id), _) if !same(&self.uuid, id) => {
                Some(format!("the vCenter knows {id} by another id, {}", self.uuid))
            }
            (Some(id), Some(noted)) if noted != id => Some(format!("the note of {id} names another VM, {noted}")),
            (Some(id), None) => Some(format!("{id} has no note")),
            (None, Some(noted)) if same(&self.uuid, noted) => Some(format!("{noted} was given the name {name}")),
            (None, Some(noted)) => Some(format!("{name} carries the note of {noted}: it is a copy")),
            (Some(_), Some(_)) | (None, None) => None,
        }
    }
}

/// What all VMs of a vCenter say, kept true by what is heard of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claims {
    /// Whatever a VM says now, of others it may be half of something.
    by: BTreeMap<Ref, Claim>,
    /// `None`: something was heard since it was last looked at.
    irregular: Option<Irregular>,
}

impl Claims {
    /// Which VM of ours this is.
    pub(crate) fn id(&self, vm: &Ref) -> Option<VmId> {
        self.by.get(vm)?.id()
    }

    /// Which VM of ours this is that was adopted, and the UUID by which it is known.
    pub(crate) fn adopted(&self, vm: &Ref) -> Option<(VmId, &str)> {
        let claim = self.by.get(vm).filter(|claim| claim.is_adopted())?;
        Some((claim.id()?, claim.uuid.as_str()))
    }

    /// Properties of a VM that are new, each with its text.
    pub(crate) fn heard<'a>(&mut self, vm: &Ref, news: impl Iterator<Item = (&'a str, &'a str)>) {
        let mut claim = self.by.remove(vm).unwrap_or_default();
        for (property, text) in news {
            match property {
                "name" => claim.name = text.to_owned(),
                // None: its configuration cannot be read now, which says nothing of it.
                "config.instanceUuid" if text.is_empty() => continue,
                "config.instanceUuid" => claim.uuid = text.to_owned(),
                "config.annotation" => claim.annotated(text),
                "config.template" => claim.template = text == "true",
                _ => continue,
            }
            self.irregular = None;
        }
        self.by.insert(vm.clone(), claim);
    }

    /// The VM is not there any more.
    pub(crate) fn gone(&mut self, vm: &Ref) {
        if self.by.remove(vm).is_some() {
            self.irregular = None;
        }
    }

    /// What a person has to see to.
    pub(crate) fn irregular(&mut self) -> Irregular {
        if let Some(known) = &self.irregular {
            return known.clone();
        }
        let mut of: BTreeMap<VmId, u64> = BTreeMap::new();
        for id in self.by.values().filter_map(Claim::id) {
            *of.entry(id).or_default() += 1;
        }
        let twice = of.iter().filter(|(_, count)| **count > 1).map(|(id, count)| (*count, *id));
        let twice = twice.map(|(count, id)| (count - 1, format!("{count} VMs have the id {id}")));
        let wrong = self.by.values().filter_map(|claim| Some((1, claim.wrong()?)));
        let mut irregular = Irregular::default();
        let mut told = Vec::new();
        for (vms, what) in twice.chain(wrong) {
            irregular.vms += vms;
            if told.len() < TOLD_MAX {
                told.push(what);
            }
        }
        irregular.detail = told.join("; ");
        self.irregular.insert(irregular).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "f44dec3f-0dad-599c-bfc4-bbe000698666";
    const OTHER: &str = "00000000-0dad-599c-bfc4-bbe000698666";

    fn note(vm: &str) -> String {
        format!(r#"{{"cellbus":1,"vm":"{vm}","op":3,"tenant":"acme","name":"web-0","disk_gib":40}}"#)
    }
    fn claims(vms: &[(&str, &str, &str)]) -> Claims {
        let mut claims = Claims::default();
        for (index, (name, uuid, annotation)) in vms.iter().enumerate() {
            let news = [("name", *name), ("config.instanceUuid", uuid), ("config.annotation", annotation)];
            claims.heard(&Ref::new("VirtualMachine", &format!("vm-{index}")), news.into_iter());
        }
        claims
    }
    fn told(vms: &[(&str, &str, &str)]) -> (u64, String) {
        let irregular = claims(vms).irregular();
        (irregular.vms, irregular.detail)
    }

    #[test]
    fn what_does_not_add_up_is_told() {
        let (own, others) = (note(ID), note(OTHER));
        assert_eq!(told(&[(ID, ID, &own), ("printer", OTHER, "made by hand")]), (0, String::new()));
        for (vms, expected) in [
            (vec![(ID, ID, own.as_str()), (ID, ID, &own)], format!("2 VMs have the id {ID}")),
            (vec![(ID, OTHER, &own)], format!("the vCenter knows {ID} by another id, {OTHER}")),
            (vec![(ID, ID, &others)], format!("the note of {ID} names another VM, {OTHER}")),
            (vec![(ID, ID, "mine")], format!("{ID} has no note")),
            (vec![("web", ID, &own)], format!("{ID} was given the name web")),
            (vec![(ID, ID, &own), ("web", OTHER, &own)], format!("web carries the note of {ID}: it is a copy")),
        ] {
            assert_eq!(told(&vms), (1, expected));
        }
        let (many, detail) = told(&[("a", OTHER, own.as_str()); 9]);
        assert_eq!((many, detail.matches("it is a copy").count()), (9, TOLD_MAX));
    }

    #[test]
    fn one_that_was_adopted_is_known_by_its_own_uuid() {
        let own = note(ID).replace("\"disk_gib\"", &format!("\"adopted\":\"{OTHER}\",\"disk_gib\""));
        let vm = Ref::new("VirtualMachine", "vm-0");
        // Whatever it is called, be it an id.
        for name in ["web", OTHER, ID] {
            let mut claims = claims(&[(name, OTHER, &own)]);
            assert_eq!((claims.irregular().vms, claims.id(&vm)), (0, ID.parse().ok()), "{name}");
            assert_eq!(claims.adopted(&vm), Some((ID.parse().unwrap(), OTHER)));
        }
        // A clone has its note, and another UUID.
        assert_eq!(
            told(&[("web", OTHER, &own), ("web (1)", "c0c0c0c0-0dad-599c-bfc4-bbe000698666", &own)]),
            (1, format!("web (1) carries the note of {ID}: it is a copy"))
        );
        // Its note taken away: it is there for all that.
        let mut claims = claims(&[("web", OTHER, &own)]);
        claims.heard(&vm, [("config.annotation", "mine")].into_iter());
        let irregular = claims.irregular();
        assert_eq!((irregular.detail, claims.id(&vm)), (format!("{ID} has no note"), ID.parse().ok()));
        claims.heard(&vm, [("config.annotation", own.as_str())].into_iter());
        assert_eq!((claims.irregular().vms, claims.adopted(&vm).is_some()), (0, true));
    }

    #[test]
    fn it_follows_what_is_heard() {
        let own = note(ID);
        let mut claims = claims(&[(ID, ID, &own)]);
        let vm = Ref::new("VirtualMachine", "vm-0");
        assert_eq!((claims.irregular().vms, claims.id(&vm)), (0, ID.parse().ok()));
        claims.heard(&vm, [("name", "web")].into_iter());
        assert_eq!((claims.irregular().vms, claims.id(&vm)), (1, ID.parse().ok()), "it is the same VM");
        claims.heard(&vm, [("config.template", "true")].into_iter());
        assert_eq!((claims.irregular().vms, claims.id(&vm)), (0, None), "a template is no VM");
        claims.gone(&vm);
        assert_eq!(claims.id(&vm), None);
    }
}
