package steps

// The operations of pods and containers as the journal and the failpoints name
// them. Images have their own, PullImage and RemoveImage.
const (
	RunPodSandbox    = "RunPodSandbox"
	StopPodSandbox   = "StopPodSandbox"
	RemovePodSandbox = "RemovePodSandbox"
	CreateContainer  = "CreateContainer"
	StartContainer   = "StartContainer"
	StopContainer    = "StopContainer"
	RemoveContainer  = "RemoveContainer"
)
