// A vCenter for tests: the simulator of govmomi, with hosts of a useful size and means to make it fail.
//
// It prints one line of JSON with the URL of its SDK, the SHA-256 of its certificate and the URL of its
// controls, and ends when its standard input does, so that no test leaves one behind.
package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// What is done to a call, and what was seen of them.
type controls struct {
	mu       sync.Mutex
	down     bool
	forbids  bool
	lose     bool
	loseFor  string
	fault    string
	faultFor string
	creating map[string]time.Time
	calls    map[string]int
	bodies   map[string]string
	waiters  map[types.ManagedObjectReference]*waiter
	model    *simulator.Model
}

// Changes of a VM that a test may want to fail or whose answer it may want lost. Reconfiguring is not
// among them: the driver does it around the others.
var operation = map[string]bool{
	"CreateVM_Task": true, "CloneVM_Task": true, "PowerOnVM_Task": true, "PowerOffVM_Task": true,
	"SuspendVM_Task": true, "ResetVM_Task": true, "CreateSnapshot_Task": true, "RemoveSnapshot_Task": true,
	"RevertToSnapshot_Task": true, "RelocateVM_Task": true, "Destroy_Task": true,
	"ShutdownGuest": true, "RebootGuest": true,
}

var method = regexp.MustCompile(`<(?:\w+:)?Body[^>]*>\s*<(?:\w+:)?(\w+)[^>]*>\s*<(?:\w+:)?_this[^>]*>([^<]*)<`)

func (c *controls) sdk(inner http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 16<<20))
		if err != nil {
			return
		}
		name, object := "", ""
		if found := method.FindSubmatch(body); found != nil {
			name, object = string(found[1]), string(found[2])
		}
		c.mu.Lock()
		down := c.down
		lose := c.lose && (name == c.loseFor || c.loseFor == "" && operation[name])
		if lose {
			c.lose = false
		}
		if !down {
			c.calls[name]++
			c.calls[name+" "+object]++
			if operation[name] || name == "ReconfigVM_Task" {
				c.bodies[name] = string(body)
			}
		}
		c.mu.Unlock()
		if down {
			cut(w)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		if !lose {
			inner.ServeHTTP(w, r)
			return
		}
		inner.ServeHTTP(httptest.NewRecorder(), r)
		cut(w)
	})
}

// cut ends a connection with no answer.
func cut(w http.ResponseWriter) {
	if hijacker, ok := w.(http.Hijacker); ok {
		if connection, _, err := hijacker.Hijack(); err == nil {
			connection.Close()
		}
	}
}

// What an account needs no right for but to read.
var reads = map[string]bool{
	"RetrieveServiceContent": true, "Login": true, "Logout": true, "RetrievePropertiesEx": true, "ContinueRetrievePropertiesEx": true,
	"CreateContainerView": true, "DestroyView": true, "CreatePropertyCollector": true, "DestroyPropertyCollector": true,
	"CreateFilter": true, "WaitForUpdatesEx": true, "FindChild": true, "FindByUuid": true,
}

// before is asked before each method: what a real vCenter refuses and the simulator does not, and faults
// that a test wants.
func (c *controls) before(ctx *simulator.Context, m *simulator.Method) (mo.Reference, types.BaseMethodFault) {
	if ctx.Session == nil && (m.Name == "RetrievePropertiesEx" || m.Name == "ContinueRetrievePropertiesEx") {
		return nil, &types.NotAuthenticated{}
	}
	if _, ok := m.Body.(*types.WaitForUpdatesEx); ok {
		if w := c.waiterOf(ctx, m.This); w != nil {
			m.This = w.self
			return w, nil
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.forbids && !reads[m.Name] {
		return nil, &types.NoPermission{Object: &m.This, PrivilegeId: "of " + m.Name}
	}
	if c.fault != "" && (m.Name == c.faultFor || c.faultFor == "" && operation[m.Name]) {
		kind, ok := types.TypeFunc()(c.fault)
		c.fault = ""
		if ok {
			if fault, ok := reflect.New(kind).Interface().(types.BaseMethodFault); ok {
				return nil, fault
			}
		}
		return nil, &types.SystemError{Reason: "no such fault"}
	}
	if change, ok := m.Body.(*types.ReconfigVM_Task); ok && change.Spec.ChangeVersion != "" {
		vm, ok := ctx.Map.Get(m.This).(*simulator.VirtualMachine)
		if ok && vm.Config.ChangeVersion != change.Spec.ChangeVersion {
			return nil, &types.ConcurrentAccess{}
		}
	}
	if create, ok := m.Body.(*types.CreateVM_Task); ok {
		name := create.Config.Name
		if folder, ok := ctx.Map.Get(m.This).(*simulator.Folder); ok {
			if there := ctx.Map.FindByName(name, folder.ChildEntity); there != nil {
				return nil, &types.DuplicateName{Name: name, Object: there.Reference()}
			}
		}
		// A name is taken from the moment that its task begins.
		if at, ok := c.creating[name]; ok && time.Since(at) < 10*time.Second {
			return nil, &types.DuplicateName{Name: name, Object: m.This}
		}
		c.creating[name] = time.Now()
	}
	if m.Name == "Destroy_Task" {
		clear(c.creating)
	}
	return nil, nil
}

func (c *controls) vm(name string) *simulator.VirtualMachine {
	for _, entity := range c.model.Map().All("VirtualMachine") {
		if vm, ok := entity.(*simulator.VirtualMachine); ok && vm.Name == name {
			return vm
		}
	}
	return nil
}

// stranger makes a VM that runs and that Cellbus knows nothing of.
func (c *controls) stranger(name, annotation string) bool {
	registry, ctx := c.model.Map(), c.model.Service.Context
	host := registry.All("HostSystem")[0].Reference()
	made, ok := c.folder("theirs").CreateVMTask(ctx, &types.CreateVM_Task{Pool: registry.All("ResourcePool")[0].Reference(), Host: &host,
		Config: types.VirtualMachineConfigSpec{Name: name, Annotation: annotation, NumCPUs: 2, MemoryMB: 2048, GuestId: "otherGuest64",
			Files: &types.VirtualMachineFileInfo{VmPathName: "[LocalDS_0] theirs-" + name}}}).(*methods.CreateVM_TaskBody)
	if !ok || made.Res == nil || !c.ended(made.Res.Returnval) {
		return false
	}
	vm := c.vm(name)
	on, ok := vm.PowerOnVMTask(ctx, &types.PowerOnVM_Task{This: vm.Self}).(*methods.PowerOnVM_TaskBody)
	return ok && on.Res != nil && c.ended(on.Res.Returnval)
}

// ended waits for a task; it tells whether that has succeeded.
func (c *controls) ended(ref types.ManagedObjectReference) bool {
	for range 3000 {
		task, ok := c.model.Map().Get(ref).(*simulator.Task)
		if !ok {
			return false
		}
		switch task.Info.State {
		case types.TaskInfoStateSuccess:
			return true
		case types.TaskInfoStateError:
			return false
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

// failover is what vSphere HA does: the host of a VM does not respond any more, and it is started on another.
func (c *controls) failover(name, to string) bool {
	registry, ctx := c.model.Map(), c.model.Service.Context
	vm := c.vm(name)
	if vm == nil {
		return false
	}
	var target *simulator.HostSystem
	for _, entity := range registry.All("HostSystem") {
		if host := entity.(*simulator.HostSystem); host.Name == to {
			target = host
		}
	}
	from, ok := registry.Get(*vm.Runtime.Host).(*simulator.HostSystem)
	if target == nil || !ok {
		return false
	}
	registry.Update(ctx, from, []types.PropertyChange{{Name: "runtime.connectionState", Val: types.HostSystemConnectionStateNotResponding}})
	// It is taken off the one and put on the other, off, and then powered on.
	left := []types.ManagedObjectReference{}
	for _, ref := range from.Vm {
		if ref != vm.Self {
			left = append(left, ref)
		}
	}
	registry.Update(ctx, from, []types.PropertyChange{{Name: "vm", Val: left}})
	registry.Update(ctx, vm, []types.PropertyChange{
		{Name: "runtime.powerState", Val: types.VirtualMachinePowerStatePoweredOff},
		{Name: "summary.runtime.powerState", Val: types.VirtualMachinePowerStatePoweredOff},
		{Name: "runtime.host", Val: &target.Self},
		{Name: "summary.runtime.host", Val: &target.Self},
	})
	registry.Update(ctx, target, []types.PropertyChange{{Name: "vm", Val: append(target.Vm, vm.Self)}})
	vm.PowerOnVMTask(ctx, &types.PowerOnVM_Task{This: vm.Self})
	return true
}

// folder of this name below the datacenter's VM folder, made if it is not there.
func (c *controls) folder(name string) *simulator.Folder {
	registry, ctx := c.model.Map(), c.model.Service.Context
	vms := registry.Get(registry.All("Datacenter")[0].(*simulator.Datacenter).VmFolder).(*simulator.Folder)
	vms.CreateFolder(ctx, &types.CreateFolder{This: vms.Self, Name: name})
	return registry.FindByName(name, vms.ChildEntity).(*simulator.Folder)
}

func (c *controls) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	done := func(ok bool) {
		if !ok {
			w.WriteHeader(http.StatusNotFound)
		}
	}
	switch r.URL.Path {
	case "/slow":
		ms, err := strconv.Atoi(q.Get("ms"))
		simulator.TaskDelay.Delay = ms
		done(err == nil)
	case "/lose":
		c.mu.Lock()
		c.lose, c.loseFor = true, q.Get("method")
		c.mu.Unlock()
	case "/fail":
		c.mu.Lock()
		c.fault, c.faultFor = q.Get("fault"), q.Get("method")
		c.mu.Unlock()
	case "/forbid":
		// The account may only read from now on, or more again.
		c.mu.Lock()
		c.forbids = q.Get("what") != "nothing"
		c.mu.Unlock()
	case "/down":
		c.mu.Lock()
		c.down = true
		c.mu.Unlock()
	case "/heal":
		simulator.TaskDelay.Delay = 0
		c.mu.Lock()
		c.down, c.lose, c.fault = false, false, ""
		c.mu.Unlock()
	case "/calls":
		c.mu.Lock()
		n := 0
		if method := q.Get("method"); method == "" {
			// All of them.
			for name, count := range c.calls {
				if !strings.Contains(name, " ") {
					n += count
					defer fmt.Fprintf(w, "\n%s %d", name, count)
				}
			}
		} else if name := q.Get("vm"); name == "" {
			n = c.calls[method]
		} else if vm := c.vm(name); vm != nil {
			n = c.calls[method+" "+vm.Self.Value]
		}
		c.mu.Unlock()
		fmt.Fprint(w, n)
	case "/vms":
		// Those that Cellbus has made.
		for _, entity := range c.model.Map().All("VirtualMachine") {
			if vm := entity.(*simulator.VirtualMachine); vm.Config.Annotation != "" {
				fmt.Fprintln(w, vm.Name)
			}
		}
	case "/stranger":
		done(c.stranger(q.Get("name"), q.Get("annotation")))
	case "/failover":
		done(c.failover(q.Get("vm"), q.Get("to")))
	case "/template":
		if vm := c.vm(q.Get("vm")); vm != nil {
			vm.PowerOffVMTask(c.model.Service.Context, &types.PowerOffVM_Task{This: vm.Self})
			time.Sleep(100 * time.Millisecond)
			vm.MarkAsTemplate(&types.MarkAsTemplate{This: vm.Self})
		}
	case "/says":
		// What a VM is called, known by and annotated with.
		if vm := c.vm(q.Get("vm")); vm != nil {
			fmt.Fprintf(w, "%s\n%s\n%s", vm.Self.Value, vm.Config.InstanceUuid, vm.Config.Annotation)
		}
	case "/body":
		// The last call of a method, as it was sent.
		c.mu.Lock()
		fmt.Fprint(w, c.bodies[q.Get("method")])
		c.mu.Unlock()
	case "/unmount":
		// A host loses a datastore; its VMs stay where they are.
		for _, entity := range c.model.Map().All("HostSystem") {
			if host := entity.(*simulator.HostSystem); host.Name == q.Get("host") {
				left := []types.ManagedObjectReference{}
				for _, ref := range host.Datastore {
					if c.model.Map().Get(ref).(*simulator.Datastore).Name != q.Get("datastore") {
						left = append(left, ref)
					}
				}
				c.model.Map().Update(c.model.Service.Context, host, []types.PropertyChange{{Name: "datastore", Val: left}})
			}
		}
	case "/storage":
		// What a datastore says of itself.
		changes := []types.PropertyChange{{Name: "summary.maintenanceMode", Val: q.Get("mode")}}
		for name, property := range map[string]string{"capacity_gib": "summary.capacity", "free_gib": "summary.freeSpace"} {
			if gib, err := strconv.ParseInt(q.Get(name), 10, 64); err == nil {
				changes = append(changes, types.PropertyChange{Name: property, Val: gib << 30})
			}
		}
		for _, entity := range c.model.Map().All("Datastore") {
			if store := entity.(*simulator.Datastore); store.Name == q.Get("datastore") {
				c.model.Map().Update(c.model.Service.Context, store, changes)
			}
		}
	case "/unplug":
		// A host leaves a network.
		for _, entity := range c.model.Map().All("HostSystem") {
			if host := entity.(*simulator.HostSystem); host.Name == q.Get("host") {
				left := []types.ManagedObjectReference{}
				for _, ref := range host.Network {
					if c.model.Map().Get(ref).(mo.Entity).Entity().Name != q.Get("network") {
						left = append(left, ref)
					}
				}
				c.model.Map().Update(c.model.Service.Context, host, []types.PropertyChange{{Name: "network", Val: left}})
			}
		}
	case "/datastore":
		// Which one a VM lies on.
		if vm := c.vm(q.Get("vm")); vm != nil {
			fmt.Fprint(w, c.model.Map().Get(vm.Datastore[0]).(*simulator.Datastore).Name)
		}
	case "/power", "/delete", "/rename", "/annotate", "/uuid", "/copy":
		// By somebody else, through the SDK's own handlers.
		vm := c.vm(q.Get("vm"))
		if vm == nil {
			done(false)
			return
		}
		ctx := c.model.Service.Context
		switch r.URL.Path {
		case "/delete":
			vm.PowerOffVMTask(ctx, &types.PowerOffVM_Task{This: vm.Self})
			time.Sleep(50 * time.Millisecond)
			vm.DestroyTask(ctx, &types.Destroy_Task{This: vm.Self})
		case "/power":
			if q.Get("on") == "true" {
				vm.PowerOnVMTask(ctx, &types.PowerOnVM_Task{This: vm.Self})
			} else {
				vm.PowerOffVMTask(ctx, &types.PowerOffVM_Task{This: vm.Self})
			}
		case "/uuid":
			// As a vCenter does when it finds an id twice.
			c.model.Map().Update(ctx, vm, []types.PropertyChange{{Name: "config.instanceUuid", Val: q.Get("to")}})
		case "/copy":
			// With its note, in a folder of its own.
			folder := c.folder("copies")
			folder.CreateVMTask(ctx, &types.CreateVM_Task{This: folder.Self, Pool: *vm.ResourcePool, Host: vm.Runtime.Host,
				Config: types.VirtualMachineConfigSpec{Name: q.Get("name"), Annotation: vm.Config.Annotation,
					Files: &types.VirtualMachineFileInfo{VmPathName: "[LocalDS_0] copy-" + q.Get("name")}}})
		case "/rename":
			vm.RenameTask(ctx, &types.Rename_Task{This: vm.Self, NewName: q.Get("to")})
		case "/annotate":
			vm.ReconfigVMTask(ctx, &types.ReconfigVM_Task{This: vm.Self, Spec: types.VirtualMachineConfigSpec{Annotation: q.Get("to")}})
		}
	case "/host":
		found := false
		for _, entity := range c.model.Map().All("HostSystem") {
			if host := entity.(*simulator.HostSystem); host.Name == q.Get("host") {
				found = true
				maintenance := q.Get("maintenance") == "true"
				state := types.HostSystemConnectionStateConnected
				if q.Get("connected") == "false" {
					state = types.HostSystemConnectionStateDisconnected
				}
				c.model.Map().Update(c.model.Service.Context, host, []types.PropertyChange{
					{Name: "runtime.inMaintenanceMode", Val: maintenance},
					{Name: "runtime.connectionState", Val: state},
				})
			}
		}
		done(found)
	case "/folder":
		for _, entity := range c.model.Map().All("Folder") {
			if folder := entity.(*simulator.Folder); folder.Name == "cellbus" {
				folder.CreateFolder(c.model.Service.Context, &types.CreateFolder{This: folder.Self, Name: q.Get("name")})
			}
		}
	default:
		done(false)
	}
}

// certificate makes an authority and a certificate of it for this machine.
func certificate(folder string) error {
	authority := x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "vcsim authority"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(30 * 24 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	own := authority
	own.SerialNumber, own.Subject, own.IsCA = big.NewInt(2), pkix.Name{CommonName: "vcsim"}, false
	own.KeyUsage, own.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	own.DNSNames, own.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
	keys := [2]*ecdsa.PrivateKey{}
	for i := range keys {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		keys[i] = key
	}
	root, err := x509.CreateCertificate(rand.Reader, &authority, &authority, &keys[0].PublicKey, keys[0])
	if err != nil {
		return err
	}
	leaf, err := x509.CreateCertificate(rand.Reader, &own, &authority, &keys[1].PublicKey, keys[0])
	if err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(keys[1])
	if err != nil {
		return err
	}
	for _, file := range []struct {
		name, kind string
		bytes      []byte
	}{{"ca.pem", "CERTIFICATE", root}, {"cert.pem", "CERTIFICATE", leaf}, {"key.pem", "PRIVATE KEY", key}} {
		text := pem.EncodeToMemory(&pem.Block{Type: file.kind, Bytes: file.bytes})
		if err := os.WriteFile(filepath.Join(folder, file.name), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func run() error {
	listen := flag.String("listen", "127.0.0.1:0", "where the SDK is served; the controls have a port of their own")
	hosts := flag.Int("hosts", 2, "hosts of the one cluster")
	machines := flag.Int("vms", 0, "VMs that are there already")
	folder := flag.String("folder", "cellbus", "folder below the datacenter's VM folder; empty: none")
	template := flag.String("template", "", "name of a template with a snapshot in the folder `templates`")
	datastores := flag.Int("datastores", 1, "datastores, which all hosts have")
	user := flag.String("user", "cellbus", "who may sign in")
	password := flag.String("password", "", "with what; empty: anything")
	keys := flag.String("keys", "", "folder for certificate and key, which are made if they are not there; ca.pem is their authority's")
	flag.Parse()
	log.SetOutput(io.Discard)

	model := simulator.VPX()
	model.Datacenter, model.Cluster, model.ClusterHost, model.Host = 1, 1, *hosts, 0
	model.Machine, model.Datastore = *machines, *datastores
	if *template != "" && model.Machine == 0 {
		model.Machine = 1
	}
	if err := model.Create(); err != nil {
		return err
	}
	defer model.Remove()
	simulator.TaskDelay.MethodDelay = map[string]int{"LockHandoff": 0}
	c := &controls{model: model, creating: map[string]time.Time{}, calls: map[string]int{}, bodies: map[string]string{}, waiters: map[types.ManagedObjectReference]*waiter{}}
	registry := model.Map()
	registry.Handler = c.before
	for _, entity := range registry.All("HostSystem") {
		host := entity.(*simulator.HostSystem)
		host.Summary.Hardware.NumCpuThreads = 64
		host.Summary.Hardware.NumCpuCores = 32
		host.Summary.Hardware.MemorySize = 512 << 30
	}
	ctx := model.Service.Context
	datacenter := registry.All("Datacenter")[0].(*simulator.Datacenter)
	vms := registry.Get(datacenter.VmFolder).(*simulator.Folder)
	if *folder != "" {
		vms.CreateFolder(ctx, &types.CreateFolder{This: vms.Self, Name: *folder})
	}
	if *template != "" {
		vms.CreateFolder(ctx, &types.CreateFolder{This: vms.Self, Name: "templates"})
		there := registry.FindByName("templates", vms.ChildEntity).(*simulator.Folder)
		vm := registry.All("VirtualMachine")[0].(*simulator.VirtualMachine)
		vm.PowerOffVMTask(ctx, &types.PowerOffVM_Task{This: vm.Self})
		time.Sleep(100 * time.Millisecond)
		vm.CreateSnapshotTask(ctx, &types.CreateSnapshot_Task{This: vm.Self, Name: "base"})
		time.Sleep(100 * time.Millisecond)
		vm.RenameTask(ctx, &types.Rename_Task{This: vm.Self, NewName: *template})
		there.MoveIntoFolderTask(ctx, &types.MoveIntoFolder_Task{This: there.Self, List: []types.ManagedObjectReference{vm.Self}})
		time.Sleep(100 * time.Millisecond)
		vm.MarkAsTemplate(&types.MarkAsTemplate{This: vm.Self})
	}
	if *password != "" {
		model.Service.Listen = &url.URL{Host: "127.0.0.1:0", User: url.UserPassword(*user, *password)}
	}
	server := model.Service.NewServer()
	defer server.Close()

	if *keys == "" {
		return fmt.Errorf("-keys is needed")
	}
	if _, err := os.Stat(filepath.Join(*keys, "key.pem")); err != nil {
		if err := certificate(*keys); err != nil {
			return err
		}
	}
	own, err := tls.LoadX509KeyPair(filepath.Join(*keys, "cert.pem"), filepath.Join(*keys, "key.pem"))
	if err != nil {
		return err
	}
	listener, err := tls.Listen("tcp", *listen, &tls.Config{Certificates: []tls.Certificate{own}})
	if err != nil {
		return err
	}
	controlled, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	print := sha256.Sum256(own.Certificate[0])
	go http.Serve(listener, c.sdk(model.Service.ServeMux))
	go http.Serve(controlled, c)
	line, err := json.Marshal(map[string]string{
		"url":        "https://" + listener.Addr().String(),
		"thumbprint": hex.EncodeToString(print[:]),
		"control":    "http://" + controlled.Addr().String(),
	})
	if err != nil {
		return err
	}
	fmt.Println(string(line))
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "vcsim:", err)
		os.Exit(1)
	}
}
