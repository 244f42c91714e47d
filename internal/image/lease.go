package image

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
)

const (
	pullLeasePrefix = "berth-pull-"
	loadLeasePrefix = "berth-load-"
	// leaseLife bounds what a daemon that never comes back holds.
	leaseLife = 24 * time.Hour
)

// attemptMark stands between a reference and what tells its pulls apart.
const attemptMark = " attempt "

// newAttempt names one pull of a reference, in the journal and for its lease.
// No name comes twice: whoever takes back what a pull left, or sweeps, never
// meets the pull that came after it.
func newAttempt(ref string) string { return ref + attemptMark + rand.Text() }

// pullLease is the name of the lease of an attempt, which begins with that of
// all of its reference.
func pullLease(attempt string) string {
	ref, random, found := strings.Cut(attempt, attemptMark)
	sum := sha256.Sum256([]byte(ref))
	id := pullLeasePrefix + hex.EncodeToString(sum[:16])
	if found {
		id += "-" + random
	}
	return id
}

// takeLease makes a lease, whose name is new.
func (s *Store) takeLease(ctx context.Context, id string) error {
	s.useLease(id, true)
	_, err := s.client.LeasesService().Create(s.ctx(ctx), leases.WithID(id), leases.WithExpiration(leaseLife))
	if err != nil {
		return fmt.Errorf("lease %s: %w", id, err)
	}
	return nil
}

// dropLease removes a lease; one that is gone is no error. GC follows by
// itself.
func (s *Store) dropLease(ctx context.Context, id string) error {
	defer s.useLease(id, false)
	err := s.client.LeasesService().Delete(s.ctx(ctx), leases.Lease{ID: id})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove lease %s: %w", id, err)
	}
	return nil
}

func (s *Store) useLease(id string, inUse bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if inUse {
		s.leases[id] = true
	} else {
		delete(s.leases, id)
	}
}

func (s *Store) leaseInUse(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leases[id]
}

// Sweep removes the leases that pulls and loads of a daemon before this one
// left, and with them what they had downloaded. It is safe at any time: a lease
// of this daemon is in use from before it is made, and its name never comes again.
func (s *Store) Sweep(ctx context.Context) error {
	ctx = s.ctx(ctx)
	all, err := s.client.LeasesService().List(ctx)
	if err != nil {
		return fmt.Errorf("sweep of image leases: %w", err)
	}
	var errs []error
	for _, lease := range all {
		ours := strings.HasPrefix(lease.ID, pullLeasePrefix) || strings.HasPrefix(lease.ID, loadLeasePrefix)
		if !ours || s.leaseInUse(lease.ID) {
			continue
		}
		s.log.Info("removing what a pull that was cut left", "lease", lease.ID)
		if err := s.dropLease(ctx, lease.ID); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
