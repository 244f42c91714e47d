package engine

import "context"

func (o *Options) sweepShims(ctx context.Context) error { return nil }
