package main

import (
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// A waiter answers WaitForUpdatesEx in place of the simulator's own collector, which reads everything
// anew for each thing that changes: with thousands of VMs it does little else. A vCenter tells what has
// changed, and so does this, for the first filter of a collector.
type waiter struct {
	self types.ManagedObjectReference
	// What is read of the objects.
	collector *simulator.PropertyCollector
	spec      types.PropertyFilterSpec
	mu        sync.Mutex
	// What has changed since it was asked last, by the latest that happened to it.
	changed map[types.ManagedObjectReference]types.ObjectUpdateKind
	told    map[types.ManagedObjectReference]bool
	pending []types.ObjectUpdate
}

// updatesMax is how many objects one answer has, as in the simulator.
const updatesMax = 100

// waiterOf is the waiter of a collector that has a filter; nil if it has none.
func (c *controls) waiterOf(ctx *simulator.Context, this types.ManagedObjectReference) *waiter {
	c.mu.Lock()
	known := c.waiters[this]
	c.mu.Unlock()
	if known != nil || ctx.Session == nil {
		return known
	}
	collector, ok := ctx.Session.Get(this).(*simulator.PropertyCollector)
	if !ok || len(collector.Filter) == 0 {
		return nil
	}
	filter, ok := ctx.Session.Get(collector.Filter[0]).(*simulator.PropertyFilter)
	if !ok {
		return nil
	}
	w := &waiter{
		self:      types.ManagedObjectReference{Type: this.Type, Value: "waiter-" + this.Value},
		collector: collector,
		spec:      filter.Spec,
		changed:   map[types.ManagedObjectReference]types.ObjectUpdateKind{},
		told:      map[types.ManagedObjectReference]bool{},
	}
	c.mu.Lock()
	c.waiters[this] = w
	c.mu.Unlock()
	c.model.Map().AddHandler(w)
	return w
}

func (w *waiter) Reference() types.ManagedObjectReference { return w.self }

// wants tells whether a change of these properties (nil: of all) is of interest.
func (w *waiter) wants(ref types.ManagedObjectReference, changes []types.PropertyChange) bool {
	for _, set := range w.spec.PropSet {
		if set.Type != ref.Type {
			continue
		}
		if changes == nil {
			return true
		}
		for _, change := range changes {
			for _, path := range set.PathSet {
				if path == change.Name || strings.HasPrefix(path, change.Name+".") || strings.HasPrefix(change.Name, path+".") {
					return true
				}
			}
		}
	}
	return false
}

func (w *waiter) happened(ref types.ManagedObjectReference, kind types.ObjectUpdateKind, changes []types.PropertyChange) {
	if w.wants(ref, changes) {
		w.mu.Lock()
		w.changed[ref] = kind
		w.mu.Unlock()
	}
}

func (w *waiter) PutObject(_ *simulator.Context, o mo.Reference) {
	w.happened(o.Reference(), types.ObjectUpdateKindEnter, nil)
}

func (w *waiter) UpdateObject(_ *simulator.Context, o mo.Reference, changes []types.PropertyChange) {
	w.happened(o.Reference(), types.ObjectUpdateKindModify, changes)
}

func (w *waiter) RemoveObject(_ *simulator.Context, ref types.ManagedObjectReference) {
	w.happened(ref, types.ObjectUpdateKindLeave, nil)
}

// read gives all wanted properties of the objects, as updates.
func (w *waiter) read(ctx *simulator.Context, objects []types.ObjectSpec) []types.ObjectUpdate {
	answer := w.collector.RetrievePropertiesEx(ctx, &types.RetrievePropertiesEx{
		SpecSet: []types.PropertyFilterSpec{{PropSet: w.spec.PropSet, ObjectSet: objects}},
	})
	body, ok := answer.(*methods.RetrievePropertiesExBody)
	if !ok || body.Res == nil || body.Res.Returnval == nil {
		return nil
	}
	var updates []types.ObjectUpdate
	for _, object := range body.Res.Returnval.Objects {
		update := types.ObjectUpdate{Kind: types.ObjectUpdateKindModify, Obj: object.Obj}
		if !w.told[object.Obj] {
			w.told[object.Obj] = true
			update.Kind = types.ObjectUpdateKindEnter
		}
		for _, property := range object.PropSet {
			update.ChangeSet = append(update.ChangeSet, types.PropertyChange{
				Op: types.PropertyChangeOpAssign, Name: property.Name, Val: property.Val,
			})
		}
		updates = append(updates, update)
	}
	return updates
}

// look gives what has changed.
func (w *waiter) look(ctx *simulator.Context) []types.ObjectUpdate {
	w.mu.Lock()
	changed := w.changed
	w.changed = map[types.ManagedObjectReference]types.ObjectUpdateKind{}
	w.mu.Unlock()
	var updates []types.ObjectUpdate
	for ref, kind := range changed {
		if kind != types.ObjectUpdateKindLeave {
			updates = append(updates, w.read(ctx, []types.ObjectSpec{{Obj: ref}})...)
		} else if w.told[ref] {
			delete(w.told, ref)
			updates = append(updates, types.ObjectUpdate{Kind: kind, Obj: ref})
		}
	}
	return updates
}

// WaitForUpdatesEx as a vCenter has it.
func (w *waiter) WaitForUpdatesEx(ctx *simulator.Context, r *types.WaitForUpdatesEx) soap.HasFault {
	body := &methods.WaitForUpdatesExBody{Res: new(types.WaitForUpdatesExResponse)}
	seconds := int32(0)
	if r.Options != nil && r.Options.MaxWaitSeconds != nil {
		seconds = *r.Options.MaxWaitSeconds
	}
	if r.Version == "" {
		w.pending = w.read(ctx, w.spec.ObjectSet)
	}
	for end := time.Now().Add(time.Duration(seconds) * time.Second); len(w.pending) == 0; {
		w.pending = w.look(ctx)
		if len(w.pending) == 0 && !time.Now().Before(end) {
			return body
		}
		if len(w.pending) == 0 {
			time.Sleep(20 * time.Millisecond)
		}
	}
	now := w.pending
	if len(now) > updatesMax {
		now = now[:updatesMax]
	}
	w.pending = w.pending[len(now):]
	body.Res.Returnval = &types.UpdateSet{
		Version:   "-",
		FilterSet: []types.PropertyFilterUpdate{{Filter: w.collector.Filter[0], ObjectSet: now}},
		Truncated: types.NewBool(len(w.pending) > 0),
	}
	return body
}
