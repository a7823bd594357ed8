package spec

import (
	"slices"
	"time"

	"github.com/keybaton/keybaton/internal/call"
)

// Slots are the fixed keys of a vendor, such as key1 and key2: each has a name,
// and is made anew in place.
type Slots struct {
	Names []string
	Read  *SlotsRead // nil: the vendor does not show them
}

// SlotsRead is the request that shows the vendor's fixed keys.
type SlotsRead struct {
	Act
	Items call.Path
	Name  call.Path // of the slot, in one item
	Key   call.Path // the key, in one item
}

// overwrites reads what is said of vendors where a new key ends another one:
// roll, how long the replaced key works on, and slots, the names of fixed keys.
func (p *parsing) overwrites(top *object) {
	rec := p.rec
	if o := top.object("roll"); o != nil {
		rec.Grace = o.duration("grace")
		o.done()
		if rec.Shape != RollGrace {
			p.add(o.n, "roll", "shape: "+RollGrace+", or leave roll out", "a vendor of shape %s lets no replaced key work on", rec.Shape)
		}
	}
	if rec.Shape == RollGrace && rec.Grace <= 0 {
		p.add(top.n, "roll.grace", "roll: {grace: 24h}", "how long the replaced key works on is missing")
		rec.Grace = time.Hour
	}
	o := top.object("slots")
	if o == nil {
		if rec.Shape == TwoSlot {
			p.add(top.n, "slots", "slots: {names: [key1, key2]}", "a vendor of shape %s needs this field", TwoSlot)
		}
		return
	}
	if rec.Shape != TwoSlot {
		p.add(o.n, "slots", "shape: "+TwoSlot+", or leave slots out", "a vendor of shape %s has no fixed keys", rec.Shape)
	}
	for _, f := range []string{"list", "soft"} {
		if slices.ContainsFunc(top.n.fields, func(x field) bool { return x.name == f }) {
			p.add(top.get(f), f, "slots.read, which shows the keys", "fixed keys are not listed or disabled one by one")
		}
	}
	rec.Slots = &Slots{Names: o.texts("names")}
	if n := len(rec.Slots.Names); n < 2 || len(slices.Compact(slices.Sorted(slices.Values(rec.Slots.Names)))) != n {
		p.add(o.n, o.at("names"), "names: [key1, key2]", "there must be two names at least, each once")
	}
	if r := o.object("read"); r != nil {
		rd := &SlotsRead{Act: p.act(r, p.base.with(p.managerNames()))}
		for name, to := range map[string]*call.Path{"items": &rd.Items, "name": &rd.Name, "key": &rd.Key} {
			if n := r.need(name, name+": $.…"); n != nil {
				*to = p.jsonPath(n, r.at(name))
			}
		}
		r.done()
		rec.Slots.Read = rd
	}
	o.done()
}

// Rolls reports whether the vendor has one key, which a creation replaces.
func (r *Recipe) Rolls() bool { return r.Shape == RollGrace || r.Shape == RollHard }
