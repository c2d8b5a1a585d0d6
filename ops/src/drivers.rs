//! The drivers of real managers that this build has, each a feature.

use cellbus_cell::driver::Factories;

/// One for each kind of `[[managers]]` beside the simulated ones.
pub(crate) fn factories() -> Factories {
    vec![
        #[cfg(feature = "vsphere")]
        std::sync::Arc::new(cellbus_vsphere::VsphereFactory),
        #[cfg(feature = "libvirt")]
        std::sync::Arc::new(cellbus_libvirt::Libvirt),
    ]
}
