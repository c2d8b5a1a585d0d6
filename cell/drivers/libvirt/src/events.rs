//! Events of libvirt by callback, and the loop that they come from. The only place that calls the C
//! library itself: the `virt` crate has no events of domains.
#![allow(unsafe_code, reason = "callbacks of a C library")]

use std::ffi::{CStr, c_int, c_void};
use std::sync::{Arc, Once};

use cellbus_bus::ids::VmId;
use uuid::Uuid;
use virt::connect::Connect;
use virt_sys as sys;

use crate::domain;

/// What happened to a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// One of ours.
    Vm(VmId),
    /// One with another name came, went or changed, so that there may be other room, and other VMs.
    Other(Uuid),
    /// The connection broke.
    Closed,
}

/// Who is told. Called on the thread of the event loop, and must not block.
pub(crate) type Sink = Arc<dyn Fn(Event) + Send + Sync>;

/// Starts the loop, once for the process; before the first connection is opened, as libvirt wants it.
#[expect(clippy::disallowed_methods, reason = "the loop never ends, so it may not be a task that a runtime waits for")]
pub(crate) fn start_loop() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        // Errors come as values; libvirt would print each of them besides.
        virt::error::clear_error_callback();
        // SAFETY: no connection is open yet in this process, or none that wants events.
        if unsafe { sys::virEventRegisterDefaultImpl() } < 0 {
            tracing::error!("libvirt has no event loop: changes on its hosts are not heard of");
            return;
        }
        let run = || {
            loop {
                // SAFETY: the implementation was registered above.
                if unsafe { sys::virEventRunDefaultImpl() } < 0 {
                    tracing::warn!("libvirt's event loop failed once: {}", virt::error::Error::last_error());
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("libvirt events".to_owned()).spawn(run) {
            tracing::error!(%error, "libvirt's event loop has no thread: changes on its hosts are not heard of");
        }
    });
}

/// Tells `sink` what happens to domains of this connection, for as long as it is open.
///
/// # Errors
/// What libvirt says.
pub(crate) fn listen(connection: &Connect, sink: &Sink) -> Result<(), virt::error::Error> {
    // SAFETY: the callback has the type of this kind of event (libvirt casts it back), and what it is
    // handed lives until `free_sink` is called, which libvirt does once.
    let registered = unsafe {
        let callback: unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int =
            on_lifecycle;
        sys::virConnectDomainEventRegisterAny(
            connection.as_ptr(),
            std::ptr::null_mut(),
            sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE as c_int,
            Some(std::mem::transmute::<
                unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int,
                unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void),
            >(callback)),
            Box::into_raw(Box::new(Arc::clone(sink))).cast(),
            Some(free_sink),
        )
    };
    if registered < 0 {
        return Err(virt::error::Error::last_error());
    }
    // SAFETY: as above. A driver that has no such event says so, which is no trouble: it is in this process.
    let closing = Box::into_raw(Box::new(Arc::clone(sink))).cast();
    if unsafe { sys::virConnectRegisterCloseCallback(connection.as_ptr(), Some(on_close), closing, Some(free_sink)) }
        < 0
    {
        // SAFETY: libvirt did not take it.
        unsafe { free_sink(closing) };
    }
    Ok(())
}

unsafe extern "C" fn on_lifecycle(
    _connection: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _event: c_int,
    _detail: c_int,
    sink: *mut c_void,
) -> c_int {
    // SAFETY: libvirt hands back what was registered, and a domain that is there during the call.
    let (sink, name, uuid) = unsafe {
        let name = sys::virDomainGetName(domain);
        let mut uuid = [0_u8; sys::VIR_UUID_BUFLEN as usize];
        if name.is_null() || sys::virDomainGetUUID(domain, uuid.as_mut_ptr()) < 0 {
            return 0;
        }
        (&*sink.cast::<Sink>(), CStr::from_ptr(name), Uuid::from_bytes(uuid))
    };
    let vm = name.to_str().ok().and_then(domain::vm_of);
    sink(vm.map_or(Event::Other(uuid), Event::Vm));
    0
}

unsafe extern "C" fn on_close(_connection: sys::virConnectPtr, _reason: c_int, sink: *mut c_void) {
    // SAFETY: libvirt hands back what was registered.
    let sink = unsafe { &*sink.cast::<Sink>() };
    sink(Event::Closed);
}

unsafe extern "C" fn free_sink(sink: *mut c_void) {
    // SAFETY: it was made by `Box::into_raw` of such a box, and is given back once.
    drop(unsafe { Box::from_raw(sink.cast::<Sink>()) });
}
