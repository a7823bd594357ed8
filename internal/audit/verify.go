package audit

import (
	"fmt"
	"strconv"
)

// Damage says what is wrong with a chain.
type Damage string

// The kinds of damage.
const (
	Edited    Damage = "edited"    // an entry is not what was hashed
	Replaced  Damage = "replaced"  // an entry hashes right, but the next one followed another
	Removed   Damage = "removed"   // entries are missing
	Reordered Damage = "reordered" // an entry stands where it does not belong
	Cut       Damage = "cut"       // the chain ends before a head that was kept
	Rewritten Damage = "rewritten" // a head that was kept names another entry: it or an earlier one was replaced
)

// Broken is the first damage that was found in a chain.
type Broken struct {
	Seq    int64 // of the first entry that is not as it was
	Damage Damage
	Text   string // for people
}

// Error returns the text.
func (b *Broken) Error() string { return b.Text }

// Verify checks a whole chain, from its first entry on. kept is a head that was
// kept elsewhere, of any age, or nil; without one, a cut tail and a chain
// rewritten from some entry to its end cannot be seen. The error is a [*Broken].
func Verify(entries []Entry, kept *Head) error {
	v := NewVerifier()
	if kept != nil {
		v = NewVerifier(*kept)
	}
	for _, e := range entries {
		if err := v.Add(e); err != nil {
			return err
		}
	}
	_, err := v.End()
	return err
}

// Verifier checks a chain entry by entry, for chains that do not fit in memory.
// After the first damage, every method returns it again. It is for one
// goroutine.
type Verifier struct {
	last Head
	kept map[int64]string
	top  int64 // greatest seq of kept
	err  error
}

// NewVerifier returns a Verifier of a chain from its first entry on, against
// heads that were kept elsewhere, of any age. Zero heads count for nothing.
func NewVerifier(kept ...Head) *Verifier {
	v := &Verifier{kept: map[int64]string{}}
	for _, h := range kept {
		if h == (Head{}) {
			continue
		}
		if other, ok := v.kept[h.Seq]; ok && other != h.Hash {
			v.err = &Broken{h.Seq, Rewritten, fmt.Sprintf("two heads that were kept name different entries %d: the chain was rewritten between them", h.Seq)}
		}
		v.kept[h.Seq] = h.Hash
		v.top = max(v.top, h.Seq)
	}
	return v
}

// Add checks the next entry. It returns a [*Broken], or nil.
func (v *Verifier) Add(e Entry) error {
	if v.err == nil {
		if b := v.check(e); b != nil {
			v.err = b
		} else {
			v.last = e.Head()
		}
	}
	return v.err
}

func (v *Verifier) check(e Entry) *Broken {
	want := v.last.Seq + 1
	if e.Seq > want {
		which := "entry " + strconv.FormatInt(want, 10) + " is"
		if e.Seq > want+1 {
			which = fmt.Sprintf("entries %d to %d are", want, e.Seq-1)
		}
		return &Broken{want, Removed, which + " missing: removed, or moved elsewhere"}
	}
	if e.Seq < want {
		return &Broken{want, Reordered, fmt.Sprintf("entry %d stands where %d belongs", e.Seq, want)}
	}
	if Hash(e) != e.Hash {
		return &Broken{e.Seq, Edited, fmt.Sprintf("entry %d was edited: its text does not match its hash", e.Seq)}
	}
	if e.Prev != v.last.Hash {
		if e.Seq == 1 {
			return &Broken{1, Replaced, "entry 1 was replaced: it follows an entry, and there is none before it"}
		}
		return &Broken{e.Seq - 1, Replaced, fmt.Sprintf("entry %d was replaced: entry %d followed another one", e.Seq-1, e.Seq)}
	}
	if h, ok := v.kept[e.Seq]; ok && h != e.Hash {
		return &Broken{e.Seq, Rewritten, fmt.Sprintf("entry %d is not the one that the kept head names: it or an entry before it was rewritten", e.Seq)}
	}
	return nil
}

// End says that there are no more entries. It returns the head of the chain,
// to be kept elsewhere, or a [*Broken].
func (v *Verifier) End() (Head, error) {
	if v.err == nil && v.last.Seq < v.top {
		v.err = &Broken{v.last.Seq + 1, Cut, fmt.Sprintf("the chain ends with entry %d, and a head of entry %d was kept: its tail was cut", v.last.Seq, v.top)}
	}
	return v.last, v.err
}
