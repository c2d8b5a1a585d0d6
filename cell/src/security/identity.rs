//! Who a caller is.

use cellbus_bus::ids::TenantId;

/// What a caller may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// See and change what is this tenant's.
    Tenant(TenantId),
    /// See and change everything.
    Operator,
}

/// A caller that has been recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What it is called: kept with each change that it makes.
    pub name: String,
    /// What it may do.
    pub role: Role,
}

impl Identity {
    /// As kept with a change: a tenant's callers carry the tenant's name, so that theirs are told
    /// from operators'.
    #[must_use]
    pub fn who(&self) -> String {
        match &self.role {
            Role::Tenant(tenant) => format!("{tenant}/{}", self.name),
            Role::Operator => self.name.clone(),
        }
    }
}
