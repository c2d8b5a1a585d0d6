module cellbus.invalid/vcsim

go 1.24

tool github.com/vmware/govmomi/vcsim

require github.com/vmware/govmomi v0.51.0
